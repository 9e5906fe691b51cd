import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

from paretune.data_weighting import run as runner
from paretune.data_weighting.mixture_cell import mixture_cells
from paretune.data_weighting.summary import shortfall, time_to_match
from paretune.data_weighting.tables import to_markdown
from paretune.data_weighting.tasks.task import Task
from paretune.data_weighting.trial import CellResult, cells
from paretune.errors import InputError
from paretune.moo.bilevel.problem import BilevelProblem
from paretune.moo.preference import named_preferences
from paretune.progress import Silent
from paretune.recipes.data_weighting import METHODS, WeighRecipe, load_weigh_recipe
from paretune.recipes.mixture import MixtureRecipe
from paretune.recipes.reading import shipped_recipes

pytestmark = pytest.mark.slow

TARGETS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, -1.0, 2.0]], dtype=torch.float64)


def stub_task(seed: int) -> Task:
    """Three sets that pull y to a target each; the third one's is nobody's."""
    wanted = TARGETS[:2].clone()
    wanted[0, 2] = 0.1 * seed

    def upper(x: Tensor, y: Tensor) -> Tensor:
        third = (y - wanted.mean(0)).square().sum(0, keepdim=True)
        return torch.cat([(y - wanted).square().sum(1), third]) + 0.5

    def lower(x: Tensor, y: Tensor) -> Tensor:
        return x.softmax(0) @ (y - TARGETS).square().sum(1) / 2

    problem = BilevelProblem(upper, lower)
    zeros = torch.zeros(3, dtype=torch.float64)
    return Task(
        problem=problem,
        start=(zeros, zeros.clone()),
        objectives=("a", "b", "c"),
        sets=("a", "b", "random"),
        matched={"a": "a", "b": "b"},
        random=("random",),
        at=lambda x: problem,
        held_out=upper,
        counts={},
    )


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "load_task", lambda recipe: stub_task)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "paretune.data_weighting.figure.draw_weighing", lambda summary, folder: None
    )


def recipe(folder: Path, **changes: Any) -> WeighRecipe:
    given: dict[str, Any] = {
        "name": "stub",
        "task": {
            "name": "reward_model",
            "loader": "summeval",
            "criteria": ["a", "b", "c"],
            "training_criteria": ["a", "b"],
        },
        "methods": {
            "wc_augmented": {},
            "soba": {"alpha": 1.0, "beta": 0.5, "decay": 0.0},
            "moml": {"alpha": 0.1, "beta": 0.5},
        },
        "preferences": [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], "uniform"],
        "seeds": [0, 1],
        "budget": 600,
        "records": 5,
        "output_dir": str(folder),
    }
    return WeighRecipe.model_validate(given | changes)


@pytest.mark.usefixtures("stub")
def test_a_run_finds_the_planted_truth_and_writes_all_of_it(tmp_path: Path) -> None:
    seen: list[str] = []

    class Watcher(Silent):
        def point(self, name: str) -> None:
            seen.append(name)

    given = recipe(tmp_path)
    summary = runner.run_weighing(given, progress=Watcher())
    assert len(summary.done) == 14  # two methods of three preferences, MOML once; two seeds
    assert len(seen) == 14
    assert summary.methods == ("wc_augmented", "soba", "moml")
    for method in ("wc_augmented", "soba"):
        random, a = (
            [summary.weight(method, point, name) for point in summary.preferences]
            for name in ("random", "a")
        )
        assert all(spread is not None and spread.mean < 0.1 for spread in random)
        assert a[0] is not None
        assert a[1] is not None
        assert a[0].mean > a[1].mean + 0.2
    for cell in summary.done:
        assert cell.curve is not None
        assert cell.lower_gradient_norm_resolved < 1e-6
        assert cell.curve.resolved[-1] == list(cell.resolved)
        assert cell.curve.n_gradients == sorted(cell.curve.n_gradients)
        assert cell.n_gradients < 1.3 * given.budget
        assert cell.kkt is not None
        assert cell.kkt["residual"] is not None
        y = torch.tensor(cell.weights, dtype=torch.float64) @ TARGETS  # the closed-form lower level
        expected = stub_task(cell.seed).held_out(y, y)
        assert cell.resolved == pytest.approx(expected.tolist(), abs=1e-5)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        *("recipe.yaml", "manifest.json", "weigh.json", "weigh.md", "cells"),
        *(f"weigh_{kind}.png" for kind in ("methods", "preferences", "convergence", "weights")),
        "weigh_spread.png",
    }
    text = (tmp_path / "weigh.md").read_text()
    assert "Weight of the set 'random'" in text
    assert "against the reference point" in text
    written = json.loads((tmp_path / "weigh.json").read_text())
    assert len(written["cells"]) == 14
    best = written["quality"]["wc_augmented"]["resolved"]
    assert best["area_wc_augmented"]["mean"] == pytest.approx(1)
    assert best["epsilon_multiplicative"]["mean"] >= 1
    assert time_to_match(summary, "wc_augmented", "moml")


@pytest.mark.usefixtures("stub", "no_figures")
def test_cells_are_done_once_and_shared(tmp_path: Path) -> None:
    given = recipe(tmp_path, seeds=[0])
    part = runner.run_weighing(given, only=["moml-*", "*-a0.80*"])
    assert (len(part.done), part.missing) == (3, 4)
    path = tmp_path / "cells" / "moml-any-seed0" / "result.json"
    before = path.stat().st_mtime_ns
    whole = runner.run_weighing(given)
    assert (len(whole.done), whole.missing) == (7, 0)
    assert path.stat().st_mtime_ns == before
    # More seeds go into the same folder, and so do other options, whose cells are run again.
    more = recipe(tmp_path, seeds=[0, 1], methods={"moml": {"alpha": 0.2}})
    runner.run_weighing(more)
    assert path.stat().st_mtime_ns != before
    assert CellResult.from_json(json.loads(path.read_text())).options == {"alpha": 0.2}
    with pytest.raises(InputError, match=r"another recipe .*budget: 700"):
        runner.run_weighing(recipe(tmp_path, budget=700))
    fresh = runner.run_weighing(recipe(tmp_path, budget=700, seeds=[0]), fresh=True)
    assert len(fresh.done) == 7
    with pytest.raises(InputError, match="No cell matches nothing"):
        runner.run_weighing(given, only=["nothing"])


@pytest.mark.usefixtures("stub", "no_figures")
def test_the_same_seed_gives_the_same_cell(tmp_path: Path) -> None:
    results = []
    for name in ("one", "two"):
        given = recipe(tmp_path / name, seeds=[1], methods=["wc_soba"], preferences=["uniform"])
        (cell,) = runner.run_weighing(given).done
        results.append((cell.own, cell.resolved, cell.weights, cell.n_gradients))
    assert results[0] == results[1]


@pytest.mark.usefixtures("stub", "no_figures")
def test_shortfall_is_against_the_best_of_the_same_preference_and_seed(tmp_path: Path) -> None:
    summary = runner.run_weighing(recipe(tmp_path, seeds=[0, 1], methods=["wc_soba", "soba"]))
    over = shortfall(summary, np.max)
    for k, preference in enumerate(summary.preferences):
        heights = {
            method: [
                max(preference.array() * np.array(cell.resolved))
                for cell in summary.of(method, preference)
            ]
            for method in summary.methods
        }
        best = np.min(list(heights.values()), axis=0)
        for method, values in heights.items():
            spread = over[method][k]
            assert spread is not None
            assert spread.mean == pytest.approx(100 * np.mean(values / best - 1), abs=1e-9)
    assert "How well the preferences are met" in to_markdown(summary)


@pytest.mark.usefixtures("stub", "no_figures")
def test_a_failed_cell_is_told_of_and_the_rest_goes_on(tmp_path: Path) -> None:
    methods = {"wc_penalty": {"u": 1e6, "v": 1.0, "eta": 1.0}, "soba": {}}
    given = recipe(tmp_path, methods=methods, preferences=["uniform"], seeds=[0])
    summary = runner.run_weighing(given)
    assert [cell.method for cell in summary.done] == ["soba"]
    assert [cell.method for cell in summary.failed] == ["wc_penalty"]
    assert "grew without bound" in summary.failed[0].reason
    text = to_markdown(summary)
    assert "Cells that failed" in text
    assert summary.failed[0].reason in text


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ({"moml": {"alfa": 1.0}}, "Unknown key 'methods.moml.alfa'.*did you mean 'alpha'"),
        ({"moml": {"alpha": "much"}}, "'methods.moml.alpha' is 'much', but"),
        ({"moml": {"alpha": -1.0}}, "alpha must be finite and above 0"),
        ({"wc_augmented": {"record_every": 2}}, "Unknown key 'methods.wc_augmented.record_every'"),
        ({"wc_augmented": {"warm_strt": True}}, "did you mean 'warm_start'"),
        (
            {"wc_augmented": {"warm_start": "perhaps"}},
            "'methods.wc_augmented.warm_start' is 'perhaps'",
        ),
        ({"wc_penalty": {"warm_start": True}}, "Unknown key 'methods.wc_penalty.warm_start'"),
    ],
)
def test_options_are_checked_before_anything_runs(
    tmp_path: Path, methods: dict[str, Any], words: str
) -> None:
    given = recipe(tmp_path, methods=methods)
    given._source = "'mine.yaml'"
    with pytest.raises(InputError, match=words) as caught:
        runner.run_weighing(given)
    assert "'mine.yaml'" in str(caught.value)
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize("name", shipped_recipes("weigh"))
def test_shipped_recipes_load_and_round_trip(name: str) -> None:
    loaded = load_weigh_recipe(name)
    assert loaded.description
    assert type(loaded).from_yaml(loaded.to_yaml(), name) == loaded
    if isinstance(loaded, MixtureRecipe):
        assert len(mixture_cells(loaded)) == len(loaded.seeds) * 3 * len(loaded.points)
        return
    names = [cell.name for cell in cells(loaded)]
    assert len(set(names)) == len(names)
    from paretune.data_weighting.trial import solver

    problem: Any = stub_task(0).problem
    if getattr(loaded.task, "batch_size", None):
        from paretune.moo.bilevel.problem import StochasticBilevelProblem

        problem = StochasticBilevelProblem(
            lambda x, y, _: y, lambda x, y, _: y.sum(), lambda n, g: n, lambda n, g: n, 1, 1
        )
    for method, options in loaded.methods.items():
        solver(method, options, problem)


def test_the_papers_settings() -> None:
    loaded = load_weigh_recipe("weigh_reward_helpsteer")
    assert [tuple(p.weights) for p in loaded.points] == [
        *named_preferences("mobl_strong"),
        *named_preferences("mobl_slight"),
    ]
    assert (loaded.steps, len(loaded.seeds)) == (3000, 5)
    assert loaded.task.name == "reward_model"
    assert (loaded.task.batch_size, loaded.task.components) == (256, 500)
    assert load_weigh_recipe("weigh_mnist").points[-1].weights == pytest.approx([0.2] * 5)


def test_every_key_is_documented() -> None:
    from paretune.recipes.data_weighting import MnistTask, RewardModelTask

    sections: tuple[type[BaseModel], ...] = (WeighRecipe, RewardModelTask, MnistTask)
    for section in sections:
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["methods=[momo]"], "no method 'momo'; did you mean 'moml'"),
        (["task.criteria=[coherence]"], "task.criteria.*at least 2"),
        (["task.training_criteria=[]"], "task.training_criteria.*at least 1"),
        (["task.training_criteria=[fluency]", "task.random_set=false"], "two training sets"),
        (["task.hiden=[3]"], "did you mean 'task.hidden'"),
        (["task.pool=2"], "Unknown key 'task.pool'"),
        (["preferences=[[1, 0, 0, 0]]"], "a weight is 0"),
        (["preferences=[[0.5, 0.6, 0.1, 0.1]]"], "must sum to 1"),
        (["preferences=[mobl_strong]"], "5 weights for 4 objectives"),
        (["reference_point=[1.0]"], "reference_point must have 4 values"),
        (["budget=0"], "'budget' is 0, but"),
        (["seeds=[1, 1]"], "seeds: a seed is given twice"),
        (["task.name=chess"], "task"),
    ],
)
def test_mistakes_in_a_recipe_are_one_sentence(overrides: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_weigh_recipe("weigh_reward_summeval", overrides)


def test_the_command(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "paretune", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    listed = run("recipes")
    assert "weigh_mnist" in listed.stdout
    wrong = run("weigh", "weigh_mnst")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "did you mean 'weigh_mnist'" in wrong.stderr
    absent = run("weigh", "weigh_mnist", "task.path=absent.csv", f"output_dir={tmp_path}/run")
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1)
    assert "absent.csv does not exist" in absent.stderr

    # scikit-learn's digits are not needed: eight by eight images made here.
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(10), 30)
    images = generator.integers(0, 60, (300, 64))
    images[np.arange(300), 6 * labels + 1] = 255
    images[:, 0] = 0
    path = tmp_path / "digits.csv"
    np.savetxt(path, np.hstack([labels[:, None], images]), fmt="%d", delimiter=",")
    small = [
        *("task.train_size=20", "task.validation_size=10", "task.hidden=[5]", "task.features=4"),
        *("preferences=[uniform]", "seeds=[0]", "budget=40", "records=3", "polish_steps=20"),
        *("methods=[soba, moml]", f"task.path={path}", f"output_dir={tmp_path}/run"),
    ]
    done = run("weigh", "weigh_mnist", *small)
    assert done.returncode == 0, done.stderr
    assert "2 cells done." in done.stdout
    assert "[1/2] soba-" in done.stderr
    assert (tmp_path / "run" / "weigh.md").exists()


def test_all_methods_are_known() -> None:
    from paretune.moo.bilevel.choice import choose_bilevel

    for name in METHODS:
        choose_bilevel(stub_task(0).problem, name)  # type: ignore[arg-type]
