"""A sweep of one training for every preference: what it leaves, resumes, measures, and refuses."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from paretune import cli
from paretune.errors import InputError
from paretune.moo.preference import Preference
from paretune.progress import Silent
from paretune.recipes import Recipe, load_recipe
from paretune.results.front import Front
from paretune.results.gates import read_gates
from paretune.runs.candidates import read_candidates
from paretune.runs.sweep import evaluate_run, run_sweep
from paretune.training.gated_adapter import fold_adapter

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tiny"
ADAPTER = "adapter_model.safetensors"
OVERRIDES = (
    f"model.name={FIXTURE / 'model'}",
    f"data.path={FIXTURE / 'pairs.jsonl'}",
    "method={name: conditioned, steps: 4, calibration_points: 3, extrapolate: 0.5}",
    "train.save_steps=2",
    "evaluation.generate=false",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def recipe(run: Path, *overrides: str) -> Recipe:
    return load_recipe(FIXTURE / "tiny.yaml", [*OVERRIDES, f"output_dir={run}", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a conditioned sweep that nothing disturbed."""
    run = tmp_path_factory.mktemp("steerable") / "run"
    run_sweep(recipe(run))
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def digests(run: Path) -> dict[str, str]:
    names = (ADAPTER, "adapter_config.json", "gates.json", "front.json")
    files = sorted(path for path in run.rglob("*") if path.name in names[:3])
    found = {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    front = Front.read(run / "front.json")
    return found | {str(p.preference): str(p.losses) for p in front.points}


def paretune(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(each) for each in arguments])
    if isinstance(result.exception, InputError):
        return 2, str(result.exception)
    return result.exit_code, result.output


@pytest.mark.slow
def test_points_are_folded_from_one_calibrated_training(finished: Path, tmp_path: Path) -> None:
    front = Front.read(finished / "front.json")
    assert front.method == "conditioned"
    (training,) = finished.glob("shared/conditioned-*")
    (dial,) = finished.glob("shared/dial-*")
    assert json.loads((training / "training.json").read_text())["steps"] == 4
    _, names, calibration = read_gates(dial)
    assert names == front.objectives
    assert calibration is not None
    for point in front.points:
        position = calibration.position(list(point.preference.values()))
        assert point.training["position"] == dict(zip(names, position, strict=True))
        fold_adapter(dial, tmp_path / "folded", position)
        expected = load_file(tmp_path / "folded" / ADAPTER)
        found = load_file(finished / point.folder / ADAPTER)
        assert all(found[name].equal(tensor) for name, tensor in expected.items())


class _Interrupt(Silent):
    """Stops the run at the n-th thing that it tells."""

    def __init__(self, at: int) -> None:
        self.left = at

    def phase(self, phase: Any, done: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    counted = _Interrupt(0)
    run_sweep(recipe(tmp_path / "whole"), progress=counted)
    assert digests(tmp_path / "whole") == digests(finished)
    told = -counted.left
    run, trained = tmp_path / "run", set()
    for at in (4, 3, 2, told // 4, 3):  # each resumes where the last one was stopped
        with pytest.raises(KeyboardInterrupt):
            run_sweep(recipe(run), progress=_Interrupt(at))
        files = run.glob(f"shared/conditioned-*[0-9]/{ADAPTER}")
        trained |= {path.stat().st_mtime_ns for path in files}
    run_sweep(recipe(run))
    assert digests(run) == digests(finished)
    assert len(trained) <= 1  # what is trained is not trained again
    assert not list(run.rglob("*.partial"))


@pytest.mark.slow
def test_what_is_lost_after_the_training_is_made_again(run: Path) -> None:
    before = digests(run)
    (training,) = run.glob("shared/conditioned-*")
    stamp = (training / ADAPTER).stat().st_mtime_ns
    (dial,) = run.glob("shared/dial-*")
    shutil.rmtree(dial)
    shutil.rmtree(next(run.glob("points/*")))
    run_sweep(recipe(run))
    assert digests(run) == before
    assert (training / ADAPTER).stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_the_command_prints_and_draws_what_p_gives(run: Path) -> None:
    code, text = paretune("sweep", run / "recipe.yaml")
    assert code == 0, text
    assert "What p gives (calibration: even)" in text
    for p in ("0, 1", "0.25, 0.75", "0.5, 0.5", "0.75, 0.25", "1, 0"):
        assert f"│ {p} " in text
    code, text = paretune("report", run)
    assert code == 0, text
    page = (run / "report.html").read_text()
    assert "conditioned is one adapter for all p" in page
    assert "validation, p = 0, ¼" in (run / "figures" / "front.svg").read_text()


@pytest.mark.slow
def test_any_preference_is_measured(run: Path) -> None:
    code, text = paretune("evaluate", run, "--prefer", "harmless=0.37", "helpful=0.63")
    assert code == 0, text
    measured = Front.read(run / "evaluation-test" / "front.json")
    (point,) = measured.points
    (dial,) = run.glob("shared/dial-*")
    _, _, calibration = read_gates(dial)
    assert calibration is not None
    position = point.training["position"]
    assert tuple(position.values()) == calibration.position([0.37, 0.63])
    # Between the run's own points, and one of these again is what it was.
    front = evaluate_run(
        recipe(run),
        run,
        preference=Preference.of({"harmless": 1.0, "helpful": 0.0}),
        target=run / "evaluation-test",
    )
    own = Front.read(run / "front.json")
    assert [p.preference["harmless"] for p in front.points] == [0.37, 1.0]
    assert front.points[1].losses == pytest.approx(own.points[1].losses)
    assert own.points[0].losses["helpful"] <= front.points[0].losses["helpful"]
    # It can be judged as the run's own can.
    answer = json.dumps({"prompt": "red cat", "response": "sun", "finished": True, "scores": {}})
    for folder in (run / "evaluation-test" / "points").iterdir():
        (folder / "answers.jsonl").write_text(answer + "\n")
    found = read_candidates(recipe(run), run / "evaluation-test")
    assert sorted(each.preference["harmless"] for each in found) == [0.37, 1.0]


@pytest.mark.slow
def test_every_seed_has_a_training_of_its_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    front = run_sweep(recipe(run, "sweep.seeds=[0, 1]"))
    assert len(list(run.glob("shared/conditioned-*"))) == 2
    assert [point.seed for point in front.points] == [0, 0, 1, 1]
    assert front.points[0].losses != front.points[2].losses
    asked = Preference.of({"harmless": 0.5, "helpful": 0.5})
    found = evaluate_run(recipe(run, "sweep.seeds=[0, 1]"), run, preference=asked, target=run / "e")
    assert [point.seed for point in found.points] == [0, 1]
    assert len({Path(point.folder).name for point in found.points}) == 2


@pytest.mark.slow
def test_early_stopping_goes_by_the_grid(tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = ("eval_strategy=steps", "eval_steps=2", "early_stopping_patience=1")
    run_sweep(recipe(run, *(f"train.{change}" for change in changes), "method.steps=8"))
    (log,) = run.glob("shared/conditioned-*/log.jsonl")
    rows = [json.loads(row) for row in log.read_text().splitlines()]
    assert [row for row in rows if "eval_weighted" in row]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora=null"], "needs a lora section"),
        (["data.objectives=[helpful]", "sweep.preferences=[[1.0]]"], "at least two objectives"),
        (["sweep.warm_start=true"], "warm_start is for"),
        (["method.calibrate=evenly"], "'even', 'chebyshev' or 'none'"),
        (["method.extrapolate=9"], "must be at most 4"),
        (["method.mu=3"], "mu is an option of clamp, not of conditioned"),
        (["method.bases=centred"], "did you mean 'method.basis'"),
    ],
)
def test_recipes_that_do_not_fit(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(tmp_path / "run", *overrides)


def test_options_of_the_method_are_not_the_trains(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"own place in a recipe: 'method\.basis'"):
        run_sweep(recipe(tmp_path / "run", "train.basis=centred"))


def _edit(file: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def _no_calibration(dial: Path) -> None:
    _edit(dial / "gates.json", lambda value: value.update(calibration=None))


def _other_objectives(dial: Path) -> None:
    _edit(dial / "gates.json", lambda value: value.update(objectives=["helpful", "harmless"]))


def _another_loss(dial: Path) -> None:
    _edit(dial / "gates.json", lambda value: value["calibration"]["losses"][0].__setitem__(0, 0.5))


def _another_position(dial: Path) -> None:
    _edit(dial / "gates.json", lambda value: value["calibration"]["positions"][0].append(0.1))


def _infinite(dial: Path) -> None:
    text = (dial / "gates.json").read_text()
    losses = json.loads(text)["calibration"]["losses"]
    (dial / "gates.json").write_text(text.replace(str(losses[0][0]), "Infinity"))


def _another_rank(dial: Path) -> None:
    tensors = load_file(dial / ADAPTER)
    save_file(
        {name: (t[:1] if "lora_A" in name else t[:, :1]).clone() for name, t in tensors.items()},
        dial / ADAPTER,
    )
    _edit(dial / "adapter_config.json", lambda value: value.update(r=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_calibration, "no calibration"),
        (_other_objectives, "objectives are helpful, harmless, not harmless, helpful"),
        (_another_loss, "checksum"),
        (_another_position, "damaged"),
        (_infinite, "damaged|finite"),
        (_another_rank, "damaged|rank"),
    ],
)
def test_damage_is_one_sentence(run: Path, damage: Callable[[Path], None], message: str) -> None:
    (dial,) = run.glob("shared/dial-*")
    damage(dial)
    code, text = paretune("evaluate", run, "--prefer", "harmless=0.3", "helpful=0.7")
    assert code == 2
    assert Path(str(dial)).name in text
    assert re.search(message, text), text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (("harmless=-0.2", "helpful=1.2"), "finite and at least 0"),
        (("harmless=0", "helpful=0"), "a weight above 0"),
        (("harmles=1",), "did you mean 'harmless'"),
    ],
)
def test_preferences_outside_the_simplex(run: Path, weights: tuple[str, ...], message: str) -> None:
    code, text = paretune("evaluate", run, "--prefer", *weights)
    assert (code, message in text) == (2, True), text


@pytest.mark.slow
def test_separate_trainings_have_only_their_own_points(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_sweep(recipe(run, "method=linear", "train.max_steps=1"))
    code, text = paretune("evaluate", run, "--prefer", "harmless=0.5", "helpful=0.5")
    assert code == 2
    assert "no point at harmless 0.5, helpful 0.5" in text
    assert "harmless 0.2, helpful 0.8; harmless 1, helpful 0" in text
    code, text = paretune("evaluate", run, "--prefer", "harmless=1", "helpful=0")
    assert code == 0, text
