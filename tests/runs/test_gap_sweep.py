"""A sweep whose points are placed by gaps, with a training that is a stub: no model is touched."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.errors import InputError, UntrainedError
from paretune.moo.indicators import unevenness
from paretune.recipes import Recipe, load_recipe
from paretune.results.front import FrontPoint, ObjectiveMetrics
from paretune.results.points import PlannedPoint
from paretune.results.run_folder import Run
from paretune.runs import point as point_module
from paretune.runs.candidates import read_candidates
from paretune.runs.plan import plan
from paretune.runs.sweep import run_sweep

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tiny"
_T = np.linspace(0, 1, 2_001)
FRONT = np.stack([0.3 + 0.4 * _T, 0.5 + 0.2 * (1 - np.sqrt(_T)) ** 2], axis=1)
GAP = ("sweep={placement: gap, points: 7}", "method={name: clamp, mu: 2.0}")


def recipe(run: Path, *overrides: str) -> Recipe:
    inputs = [f"model.name={FIXTURE / 'model'}", f"data.path={FIXTURE / 'pairs.jsonl'}"]
    return load_recipe(FIXTURE / "tiny.yaml", [*inputs, *GAP, f"output_dir={run}", *overrides])


class Stub:
    """In place of `run_point`: reaches the front's point of p exactly, as the recipe scales it."""

    def __init__(self) -> None:
        self.done: list[tuple[float, ...]] = []
        self.fails: Callable[[int], BaseException | None] = lambda n: None

    def __call__(
        self, recipe: Recipe, point: PlannedPoint, folder: Path, splits: Any, **more: Any
    ) -> None:
        p = np.array(point.preference.weights)
        training = folder / "training.json"
        if not training.exists():
            if failure := self.fails(len(self.done)):
                raise failure
            self.done.append(point.preference.weights)
            losses = self._reached(recipe, p)
            folder.mkdir(parents=True)
            found = dict(zip(point.preference.names, losses, strict=True))
            training.write_text(json.dumps({"steps": 1, "validation": found}))
        losses = list(json.loads(training.read_text())["validation"].values())
        metrics = {
            name: ObjectiveMetrics(loss, 0.5, 0.0)
            for name, loss in zip(point.preference.names, losses, strict=True)
        }
        measured = FrontPoint(dict(point.preference), metrics, 0.1, point.seed, point.path)
        (folder / "metrics.json").write_text(json.dumps(measured.to_json()))

    @staticmethod
    def _reached(recipe: Recipe, p: Any) -> Sequence[float]:
        if 0 in p:
            return [float(x) for x in (FRONT[0] if p[0] else FRONT[-1])]
        if recipe.method_name == "linear":
            return [float(x) for x in FRONT[np.argmin(FRONT @ p)]]
        method: Any = recipe.method
        ideal, nadir = (np.array(list(each.values())) for each in (method.ideal, method.nadir))
        return [float(x) for x in FRONT[np.argmin(((FRONT - ideal) / (nadir - ideal) * p).max(1))]]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stub:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Stub()
    monkeypatch.setattr(point_module, "run_point", made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clamp", "linear"])
def test_points_lie_evenly_and_are_all_there(stub: Stub, tmp_path: Path, method: str) -> None:
    run = tmp_path / "run"
    asked = recipe(run, f"method={method}")
    front = run_sweep(asked)
    assert stub.done[:2] == [(1.0, 0.0), (0.0, 1.0)]
    assert len(set(stub.done)) == len(front.points) == 7
    losses = np.array([list(point.losses.values()) for point in front.points])
    assert unevenness(losses[np.argsort(losses[:, 0])]) < 0.4
    assert run_sweep(asked) == front
    assert len(stub.done) == 7
    # Whatever reads the folder knows the points, also with the front not yet written.
    (run / "front.json").unlink()
    assert len(list(Run.read(run).points)) == 7
    with pytest.raises(InputError, match="no answers to judge"):
        read_candidates(asked, run)


def placed(run: Path) -> list[tuple[int, tuple[float, ...]]]:
    points = plan(recipe(run, "sweep.seeds=[0, 1]"), run)
    return [(point.seed, point.preference.weights) for point in points]


@pytest.mark.slow
def test_killed_anywhere_it_places_the_same_points(stub: Stub, tmp_path: Path) -> None:
    run_sweep(recipe(tmp_path / "whole", "sweep.seeds=[0, 1]"))
    whole, stub.done = stub.done, []
    assert len(whole) == 14
    stops = {1, 2, 3, 6, 7, 9, 13}

    def fail(n: int) -> BaseException | None:
        return KeyboardInterrupt() if n in stops and not stops.remove(n) else None

    stub.fails = fail
    run = tmp_path / "run"
    for _ in range(len(stops)):
        with pytest.raises(KeyboardInterrupt):
            run_sweep(recipe(run, "sweep.seeds=[0, 1]"))
    # One that was trained and not measured counts as well.
    (run / plan(recipe(run, "sweep.seeds=[0, 1]"), run)[3].path / "metrics.json").unlink()
    front = run_sweep(recipe(run, "sweep.seeds=[0, 1]"))
    # Seeds take turns, and which is next after a kill may differ; the points of each do not.
    assert sorted(stub.done) == sorted(whole)
    assert placed(run) == placed(tmp_path / "whole")
    assert len(front.points) == 14
    # The folder may be moved, and its points are still known.
    moved = Path(shutil.move(run, tmp_path / "moved"))
    asked = load_recipe(moved / "recipe.yaml")
    assert len(plan(asked, moved)) == 14


@pytest.mark.slow
def test_a_point_that_does_not_train_ends_the_placing(stub: Stub, tmp_path: Path) -> None:
    stub.fails = lambda n: UntrainedError("No weight changed.") if n == 3 else None
    with pytest.raises(Exception, match="1 of 4 points did not train"):
        run_sweep(recipe(tmp_path / "run"))
    assert len(stub.done) == 3


@pytest.mark.slow
def test_damaged_losses_are_one_sentence(stub: Stub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_sweep(recipe(run))
    training = next(run.glob("points/*/training.json"))
    training.write_text('{"steps": 1}')
    with pytest.raises(InputError, match=r"damaged \('validation'\): delete the folder"):
        plan(recipe(run), run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep={placement: gap}"], "needs points, how many, and no preferences"),
        (["sweep={placement: gap, points: 5, preferences: [[1, 0]]}"], "and no preferences"),
        (["sweep={placement: gap, points: 2}"], "must be at least 3"),
        (["sweep={points: 5, preferences: [[1, 0]]}"], "points is for placement: gap"),
        (["sweep={seeds: [0]}"], "preferences is missing: give it a value"),
        (["method=mgda"], "for clamp and linear, which follow p, not for mgda"),
        (["method=conditioned"], "not for conditioned"),
        (["method.ideal={harmless: 0.1, helpful: 0.1}"], "leave them out of method"),
        (["data.objectives=[helpful]", "rewards=null"], "gap is for two objectives"),
    ],
)
def test_recipes_that_do_not_fit(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(tmp_path / "run", *overrides)
