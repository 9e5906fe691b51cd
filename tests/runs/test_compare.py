"""Comparisons: cells that are done once, that fail alone, and that can be resumed."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from paretune.baselines import modpo
from paretune.baselines import single_objective as single
from paretune.baselines.budget import policy_tokens
from paretune.baselines.context import Context
from paretune.baselines.recipe import CompareRecipe, load_comparison
from paretune.baselines.score_prompts import with_scores
from paretune.errors import InputError
from paretune.evaluation.scorers import FunctionScorer
from paretune.files import read_json, write_json
from paretune.report.comparison import markdown
from paretune.results.comparison import Cell, Comparison, Spread
from paretune.results.front import FrontPoint, ObjectiveMetrics
from paretune.results.gates import read_gates
from paretune.results.run_folder import read_comparison
from paretune.runs import compare_cell
from paretune.runs.compare import run_compare
from paretune.spend import Spend, Watch
from paretune.training.gated_adapter import fold_adapter

METHODS = """
methods:
  - {name: clamp, label: CLAMP, seeds: [0, 1]}
  - {name: raco, label: RACO}
  - {name: modpo, label: MODPO}
  - {name: rewarded_soups, label: Soups, options: {calibrate: none}}
"""


@pytest.fixture
def write(tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any]) -> Callable[..., Path]:
    """A comparison's recipe on a random model and 24 pairs."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = ["red", "blue", "cat", "dog", "tea", "milk", "sun", "moon", "rain", "wind", "run"]
    generator = torch.Generator().manual_seed(0)

    def text() -> str:
        return " ".join(words[i] for i in torch.randint(11, (5,), generator=generator))

    rows = [
        {
            "prompt": f"{text()} {words[row % 11]}",
            "response_0": f"{text()} red",
            "response_1": f"{text()} blue",
            "better_response_id": row % 2,
            "safer_response_id": row // 2 % 2,
        }
        for row in range(24)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def recipe(methods: str = METHODS, name: str = "tiny_compare.yaml") -> Path:
        (tmp_path / name).write_text(
            f"""
model: {{name: {tmp_path / "model"}}}
lora: {{r: 4, alpha: 8}}
data:
  loader: safe_rlhf
  path: {tmp_path / "pairs.jsonl"}
  objectives: [harmless, helpful]
  split: [0.6, 0.2, 0.2]
train: {{max_steps: 3, per_device_train_batch_size: 4, learning_rate: 1e-2, use_cpu: true}}
sweep: {{preferences: [[0.2, 0.8], [1, 0]]}}
evaluation: {{n_prompts: 2, max_new_tokens: 3, temperature: 1.0}}
output_dir: {tmp_path / "run"}
{methods}"""
        )
        return tmp_path / name

    return recipe


def stamps(run: Path) -> dict[str, int]:
    """When each result of a point or of something shared was written."""
    found = [*run.glob("cells/*/points/*/*.json*"), *run.glob("shared/*/*"), run / "base"]
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in found}


@pytest.mark.slow
def test_a_comparison_is_done_once(write: Callable[..., Path], tmp_path: Path) -> None:
    run, path = tmp_path / "run", write()
    first = run_compare(load_comparison(path))
    assert first.titles == ["CLAMP", "RACO", "MODPO", "Soups"]
    assert not first.failures
    assert [len(cell.points) for cell in first.cells] == [2] * 5
    assert sorted(path.name for path in (run / "shared").iterdir()) == [
        "rewards-harmless-seed0",
        "single-harmless-seed0",
        "single-helpful-seed0",
    ]
    before = stamps(run)
    again = run_compare(load_comparison(path))
    assert again.to_json() == first.to_json()
    assert stamps(run) == before

    # Everything is measured alike, the base model too.
    assert first.base is not None
    for point in (first.base, *(point for cell in first.cells for point in cell.points)):
        assert point.answer_tokens is not None
        assert all(metrics.perplexity for metrics in point.metrics.values())
        assert (run / point.folder / "answers.jsonl").exists()
    assert first.base.losses == pytest.approx(dict.fromkeys(first.objectives, math.log(2)))

    # All labels are on the same pairs, so a step is as many tokens for every method.
    tokens = {title: first.cost(title).point.policy_tokens for title in first.titles}  # type: ignore[union-attr]
    assert tokens["CLAMP"] == tokens["RACO"] > 0
    corner = {cell.title: cell.points[1] for cell in first.cells if cell.seed == 0}
    assert corner["MODPO"].losses == pytest.approx(corner["Soups"].losses)  # one adapter
    assert corner["CLAMP"].losses == pytest.approx(corner["Soups"].losses)  # and one objective
    assert tokens["Soups"] == 0
    assert first.cost("Soups").shared.policy_tokens > 0  # type: ignore[union-attr]
    assert first.cost("MODPO").shared.reference_tokens > 0  # type: ignore[union-attr]

    text = (run / "compare.md").read_text()
    for words in ("| CLAMP | 2 | 4 of 4 |", "±", "(0.2, 0.8)", "## Cost", "## ε between fronts"):
        assert words in text
    assert (run / "compare.png").exists()
    saved = json.loads((run / "compare.json").read_text())
    assert saved["summary"]["CLAMP"]["hypervolume"]["seeds"] == 2
    assert set(saved["epsilon"]["MODPO"]) == {"CLAMP", "RACO", "Soups"}


@pytest.mark.slow
def test_workers_make_what_one_does(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells, and what several methods share, whoever needs it first."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    soups = "{name: rewarded_soups, options: {calibrate: none}}"
    path = write(f"methods: [{{name: clamp}}, {{name: modpo}}, {soups}]")
    runs = tmp_path / "one", tmp_path / "two"
    for run, more in zip(runs, ([], ["--workers", "2"]), strict=True):
        command = [sys.executable, "-m", "paretune", "compare", str(path), f"output_dir={run}"]
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    one, two = (
        {
            str(path.relative_to(run)): path.read_bytes()
            for path in run.rglob("*")
            if path.name in ("adapter_model.safetensors", "answers.jsonl")
        }
        for run in runs
    )
    assert len(one) > 12
    assert one == two
    assert not (runs[1] / "claims").exists()
    assert len(json.loads((runs[1] / "manifest.json").read_text())["sessions"]) == 2


@pytest.mark.slow
def test_methods_can_be_added_and_one_that_fails_fails_alone(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    path = write("methods: [{name: linear}]")
    run_compare(load_comparison(path))
    before = stamps(run)
    more = (
        "methods: [{name: modpo, options: {objective: helpful}}, {name: linear}, "
        "{name: clamp, range_normalised: true}]"
    )
    monkeypatch.setattr(single, "loss_range", lambda *_: (0.2, 0.7))
    with monkeypatch.context() as patch:
        patch.setattr(modpo, "offsets", lambda *_: 1 / 0)
        found = run_compare(load_comparison(write(more)))
    (failed,) = found.failures
    assert failed.title == "modpo"
    assert failed.failure == "ZeroDivisionError: division by zero"
    assert failed.missing == ("harmless0.20-helpful0.80", "harmless1.00-helpful0.00")
    assert "division by zero" in (run / "compare.md").read_text()
    assert "offsets" in (run / "cells/modpo-seed0/failure.txt").read_text()
    assert [len(cell.points) for cell in found.cells] == [0, 2, 2]
    assert before.items() <= stamps(run).items()

    assert set(found.cells[2].points[0].training["shared"]) == {
        "single-harmless-seed0",
        "single-helpful-seed0",
    }

    # Run again, the point that can be trained is; the one without weight on 'helpful' cannot.
    found = run_compare(load_comparison(write(more)))
    (failed,) = found.failures
    assert failed.missing == ("harmless1.00-helpful0.00",)
    assert "gives 'helpful' none: leave that point out" in str(failed.failure)
    assert [len(cell.points) for cell in found.cells] == [1, 2, 2]

    with pytest.raises(InputError, match=r"another recipe \(loss.beta: 0.2, not 0.1\)"):
        run_compare(load_comparison(path, ["loss.beta=0.2"]))
    other = run_compare(load_comparison(write(more.replace("helpful", "harmless"))))
    assert "not 'helpful'): give the method another label" in str(other.failures[0].failure)
    run_compare(load_comparison(write("methods: [{name: linear}]")), fresh=True)
    assert [path.name for path in (run / "cells").iterdir()] == ["linear-seed0"]


@pytest.mark.slow
def test_modpo_goes_on_where_it_was_cut(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut after each stage in turn, the result is that of a run without cuts."""
    methods = "methods: [{name: modpo}]"
    whole = run_compare(load_comparison(write(methods)))
    shutil.move(tmp_path / "run", tmp_path / "whole")

    class Cut(BaseException):
        pass

    path = write(methods)
    for stage in ("single_objective", "_rewards", "offsets", "train_point"):
        original = getattr(modpo, stage)

        def cut(*args: Any, stage: Any = original, **named: Any) -> None:
            stage(*args, **named)
            raise Cut

        with monkeypatch.context() as patch:
            patch.setattr(modpo, stage, cut)
            with pytest.raises(Cut):
                run_compare(load_comparison(path))
    found = run_compare(load_comparison(path))
    for ours, theirs in zip(found.cells, whole.cells, strict=True):
        assert [p.losses for p in ours.points] == [p.losses for p in theirs.points]
    for run in ("whole", "run"):
        assert not [*(tmp_path / run).rglob("checkpoints"), *(tmp_path / run).rglob("*.partial")]


@pytest.mark.slow
def test_no_checkpoints_are_left_behind(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed whenever a training is over and its checkpoints are about to be deleted."""

    def cut(folder: Path) -> None:
        raise KeyboardInterrupt

    path = write("methods: [{name: modpo}]\n")
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr("paretune.experiment.train_point.drop_checkpoints", cut)
            with pytest.raises(KeyboardInterrupt):
                run_compare(load_comparison(path))
        assert list((tmp_path / "run").rglob("checkpoints"))
    assert not run_compare(load_comparison(path)).failures
    assert not list((tmp_path / "run").rglob("checkpoints"))


@pytest.mark.slow
def test_range_normalised_clamp_may_be_the_first_that_is_unfinished(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress is told of a point before it is told of its phases."""
    from rich.console import Console

    from paretune.cli.progress import _Display

    monkeypatch.setattr(single, "loss_range", lambda *_: (0.2, 0.7))
    methods = "methods: [{name: linear}, {name: clamp, range_normalised: true}]"
    run_compare(load_comparison(write("methods: [{name: linear}]")))
    found = run_compare(
        load_comparison(write(methods)), progress=_Display(Console(stderr=True), None)
    )
    assert not found.failures


@pytest.mark.slow
def test_scorer_margins_and_the_budget(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = FunctionScorer("length", lambda prompt, response: float(len(response)))

    path = write("methods: [{name: modpo, options: {margins: scorer}}]")
    recipe = load_comparison(path, ["sweep.preferences=[[0.2, 0.8]]"])
    with_scorer = run_compare(recipe)
    assert "needs a scorer of answers for 'harmless'" in str(with_scorer.failures[0].failure)
    same = FunctionScorer("same", lambda prompt, response: 1.0)
    for scorer in (same, length):
        for name in ("recipe_sources", "recipe_scorers"):
            found = {"harmless": scorer}
            monkeypatch.setattr(modpo, name, lambda recipe, found=found: found)
        if scorer is same:
            words = "the scorer 'same' of 'harmless' gives all training answers the same score"
            assert words in str(run_compare(recipe).failures[0].failure)
    found = run_compare(recipe)
    assert not found.failures
    notes = json.loads((tmp_path / "run/shared/scores-harmless/training.json").read_text())
    assert notes["deviation"] > 0

    from paretune.data.splitting import split_by_prompt
    from paretune.experiment.setup import load_data
    from paretune.models import load_model_and_tokenizer

    splits = split_by_prompt(load_data(recipe.data), recipe.data.split, recipe.data.seed)
    context = Context(recipe, splits, 0, tmp_path / "context", tmp_path / "shared")
    _, tokenizer = load_model_and_tokenizer(recipe.model.name)
    budget = policy_tokens(context, recipe.points[0], tokenizer)
    spent = found.cells[0].points[0].training["spend"]["policy_tokens"]
    assert budget == pytest.approx(spent, rel=0.1)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("methods: []", "'methods' is"),
        ("methods: [{name: clmp}]", "'clmp'"),
        ("methods: [{name: clamp}, {name: clamp}]", "two methods are called 'clamp'"),
        ("methods: [{name: clamp, options: {mue: 3}}]", "clamp, options.mue"),
        ("methods: [{name: modpo, options: {objective: x}}]", "no objective 'x'"),
        ("methods: [{name: clamp}]\nmethod: {name: mgda}", "method is for a sweep"),
        ("methods: [{name: clamp, label: '+'}]", "no letter or digit"),
        ("methods: [{name: mgda, range_normalised: true}]", "is for clamp"),
    ],
)
def test_bad_recipes(write: Callable[..., Path], methods: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_comparison(write(methods))


@pytest.mark.parametrize(
    "name",
    [
        "conditioned_demo_compare",
        "conditioned_hh_compare",
        "demo_compare",
        "hh_compare",
        "saferlhf_compare",
        "ultrafeedback_compare",
    ],
)
def test_shipped_recipes(name: str) -> None:
    recipe = load_comparison(name)
    assert recipe.description
    again = CompareRecipe.from_yaml(recipe.to_yaml(), "text")
    assert not recipe.differences(again)


def cell(title: str, seed: int, losses: list[tuple[float, float]], keys: list[str]) -> Cell:
    points = tuple(
        FrontPoint(
            preference={"a": i / 4, "b": 1 - i / 4},
            metrics={"a": ObjectiveMetrics(x, 0, 0), "b": ObjectiveMetrics(y, 0, 0)},
            chebyshev=0.0,
            seed=seed,
            training={"spend": Spend(policy_tokens=10, seconds=2).to_json(), "shared": keys},
        )
        for i, (x, y) in enumerate(losses)
    )
    return Cell(title, "linear", {}, seed, points)


def test_statistics() -> None:
    nan = math.nan
    cells = [
        cell("A", 0, [(1.0, 3.0), (3.0, 1.0)], ["s"]),
        cell("A", 1, [(1.0, 2.0), (nan, 1.0)], ["s"]),
        cell("B", 0, [(2.0, 4.0), (4.0, 2.0)], []),
    ]
    shared = {"s": Spend(policy_tokens=7, seconds=5, peak_memory_bytes=9)}
    found = Comparison.of(cells, name="x", objectives=["a", "b"], base=None, shared=shared)
    assert found.reference_point == pytest.approx((4.3, 4.3))
    volumes = [c.hypervolume for c in found.cells]
    expected = [3.3 * 1.3 + 1.3 * 2.0, 3.3 * 2.3, 2.3 * 0.3 + 0.3 * 2.0]
    assert volumes == pytest.approx(expected)
    assert found.epsilon == {"A": {"B": -1.0}, "B": {"A": 1.0}}
    cost = found.cost("A")
    assert cost is not None
    assert (cost.point.policy_tokens, cost.shared.policy_tokens) == (10, 7)
    assert (cost.front.policy_tokens, cost.front.seconds) == (27, 9.0)
    assert cost.front.peak_memory_bytes == 9
    assert Spread.of([1.0, 3.0, nan]) == Spread(2.0, math.sqrt(2), 2)
    assert Spread.of([nan]) is None


@pytest.mark.slow
def test_an_entry_may_train_in_its_own_way(write: Callable[..., Path], tmp_path: Path) -> None:
    methods = """
methods:
  - {name: clamp, label: One}
  - {name: clamp, label: Two, train: {gradient_accumulation_steps: 2, max_steps: 2}}
sweep: {preferences: [[0.2, 0.8]]}
"""
    path = write(methods)
    path.write_text(path.read_text().replace("sweep: {preferences: [[0.2, 0.8], [1, 0]]}\n", ""))
    comparison = run_compare(load_comparison(path))
    assert not comparison.failures
    one, two = (cell.points[0].training for cell in comparison.cells)
    assert (one["steps"], two["steps"]) == (3, 2)
    assert two["spend"]["policy_tokens"] > one["spend"]["policy_tokens"]
    methods = "methods: [{name: modpo, train: {max_steps: 1}}]"
    with pytest.raises(InputError, match="modpo: train is for the weightings"):
        load_comparison(write(methods, "other.yaml"))


def test_range_of_a_loss(tmp_path: Path) -> None:
    losses = [0.7, 0.9, 0.5, 0.4, 0.3, 0.1]
    rows = [{"step": n, "a/loss": loss} for n, loss in enumerate(losses)]
    log = [*rows, {"step": 6, "eval_a_loss": 9.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    assert single.loss_range(tmp_path, "a") == (pytest.approx(0.2), 0.7)
    (tmp_path / "log.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(InputError, match="no range to normalise by"):
        single.loss_range(tmp_path, "a")


def test_watch_and_prompts_with_scores() -> None:
    watch = Watch()
    block = torch.zeros(30_000_000).add_(1)  # 120 MB
    spend = watch.spend(passes=3)
    assert spend.seconds > 0
    assert spend.peak_memory_bytes > block.numel() * 4
    assert (spend + spend).passes == 6
    scores = {"a": 1.25, "b": -0.04}
    assert with_scores("Hi.", scores) == "Hi. <a_score> 1.2 <b_score> -0.0"
    dialogue = "\n\nHuman: An assistant\n\nAssistant:"
    asked = "\n\nHuman: An assistant <a_score> 1.2 <b_score> -0.0\n\nAssistant:"
    assert with_scores(dialogue, scores) == asked
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi."}]
    assert with_scores(chat, {"a": 2.0}) == [
        chat[0],
        {"role": "user", "content": "Hi. <a_score> 2.0"},
    ]


def test_a_method_that_is_asked_for_scores_is_noted() -> None:
    plain = cell("PWG", 0, [(1.0, 3.0)], [])
    asked = replace(plain, title="In context", method="ric")
    text = markdown(
        Comparison.of([plain, asked], name="x", objectives=["a", "b"], base=None, shared={})
    )
    assert "In context: the losses and perplexities are those of the policy with scores" in text
    assert "PWG: the losses" not in text


@pytest.mark.slow
def test_one_gated_adapter_serves_every_point(write: Callable[..., Path], tmp_path: Path) -> None:
    """Calibrated or not, conditioned or a soup; measured along the gate besides."""
    methods = """
methods:
  - {name: conditioned, label: One, options: {steps: 6, calibration_points: 3}}
  - {name: conditioned, label: Raw, options: {steps: 6, calibration_points: 3, calibrate: none}}
  - {name: rewarded_soups, label: Soups, options: {steps: 4, calibration_points: 3}}
  - {name: rewarded_soups, label: Plain, options: {steps: 4, calibrate: none}}
  - {name: linear, label: Middle, preferences: [[0.5, 0.5]], train: {max_steps: 2}}
"""
    path = write(methods)
    comparison = run_compare(load_comparison(path, ["evaluation.generate=false"]))
    assert not comparison.failures
    one, raw, soups, plain, middle = comparison.cells
    shared = tmp_path / "run" / "shared"
    (training,) = shared.glob("conditioned-*")  # what p means does not change it
    for cell in (one, soups):
        for point in cell.points:
            folder = tmp_path / "run" / point.folder
            kept = read_json(folder / "training.json")
            (dial,) = (shared / key for key in kept["shared"] if key.startswith("dial-"))
            _, objectives, calibration = read_gates(dial)
            assert objectives == ("harmless", "helpful")
            assert calibration is not None
            position = calibration.position(list(point.preference.values()))
            assert kept["position"] == dict(zip(objectives, position, strict=True))
            fold_adapter(dial, tmp_path / "again", position)
            name = "adapter_model.safetensors"
            assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    # The gate at p itself is the soup as published, and the adapter that was not calibrated.
    for cell, published in ((one, raw), (soups, plain)):
        assert cell.dial is not None
        assert [p.losses for p in cell.dial.of(False)] == [
            pytest.approx(p.losses, rel=1e-5) for p in published.points
        ]
        assert [p.preference["harmless"] for p in cell.dial.of(True)] == [0, 0.25, 0.5, 0.75, 1]
    assert plain.dial is middle.dial is None
    assert [p.preference["harmless"] for p in middle.points] == [0.5]
    spacing = json.loads((tmp_path / "run/compare.json").read_text())["summary"]["Soups"]["spacing"]
    assert spacing[0]["in_order"][1] == 8
    assert "## Dials" in (tmp_path / "run/compare.md").read_text()
    assert read_comparison(tmp_path / "run/compare.json") == comparison

    # Done once; and of what was cut short, a calibration is made again, a training is not.
    before = stamps(tmp_path / "run")
    assert run_compare(load_comparison(path, ["evaluation.generate=false"])) == comparison
    assert stamps(tmp_path / "run") == before
    (tmp_path / "run/cells/one-seed0/dial.json").unlink()
    for folder in shared.glob("dial-*"):
        shutil.rmtree(folder)
    for folder in (tmp_path / "run/cells").glob("*/points"):
        shutil.rmtree(folder)
    again = run_compare(load_comparison(path, ["evaluation.generate=false"]))
    for first, second in zip(comparison.cells, again.cells, strict=True):
        assert [p.losses for p in first.points] == [p.losses for p in second.points]
        assert first.dial == second.dial
    key = f"shared/{training.name}/adapter_model.safetensors"
    assert stamps(tmp_path / "run")[key] == before[key]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{average: raw}", "raw cannot be calibrated"),
        ("{adapters: ppo, steps: 3}", "steps is for adapters: preference"),
    ],
)
def test_soups_that_cannot_be_calibrated(
    write: Callable[..., Path], options: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_comparison(write(f"methods: [{{name: rewarded_soups, options: {options}}}]"))
    with pytest.raises(InputError, match="linear, preferences: point 1"):
        load_comparison(write("methods: [{name: linear, preferences: [[0.5, 0.4]]}]"))


def test_options_of_an_earlier_version_are_the_same_options(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    """Version 0.1 kept the keys of all weightings, and had fewer."""
    loaded = load_comparison(write("methods: [{name: linear}, {name: raco}, {name: modpo}]"))
    kept = {"radius": 0.4, "mu": 100.0, "mu_final": None, "mu_schedule": "constant", "ideal": None}
    for task in compare_cell.all_tasks(loaded, tmp_path):
        old = {"name": task.entry.name, **kept} if task.entry.is_weighting else task.entry.settings
        path = task.folder / "method.json"
        write_json(path, {**task.settings, "options": old})
        compare_cell._claim_cell(task)
        assert json.loads(path.read_text()) == task.settings
        write_json(path, {**task.settings, "options": {**old, "x": 1}})
        with pytest.raises(InputError, match="give the method another label"):
            compare_cell._claim_cell(task)


@pytest.mark.slow
def test_two_processes_share_a_base_and_make_what_one_does(
    write: Callable[..., Path],
    tmp_path: Path,
    tokenizer: Any,
    tiny_llama: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every method whose trainings can be divided, on a base in two parts."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny_llama(num_labels=1).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    path = write(f"""
rewards:
  helpful: {{scorer: model, name: {tmp_path / "reward"}}}
  harmless: {{scorer: demo, name: informative}}
methods:
  - {{name: clamp, range_normalised: true}}
  - {{name: modpo}}
  - {{name: modpo, label: scored, options: {{margins: scorer}}}}
  - {{name: rewarded_soups, label: soups, options: {{calibrate: none}}}}
  - {{name: rewarded_soups, label: dial}}
  - {{name: conditioned}}
""")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

    def run(name: str, several: bool, *more: str) -> Path:
        command = [sys.executable, *(launcher if several else []), "-m", "paretune", "compare"]
        command += [str(path), f"output_dir={tmp_path / name}", "evaluation.temperature=0"]
        command += ["train.max_steps=6", "train.dataloader_drop_last=true"]
        command += ["sweep.preferences=[[0.2, 0.8]]", *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path / name

    one = run("one", False)
    two = run("two", True, "model.shard=true", "train.per_device_train_batch_size=2")
    expected, found = (read_comparison(folder / "compare.json") for folder in (one, two))
    assert not found.failures
    assert found.titles == expected.titles
    for left, right in zip(expected.cells, found.cells, strict=True):
        for before, after in zip(left.points, right.points, strict=True):
            assert after.losses == pytest.approx(before.losses, abs=1e-4), left.title
            assert after.text == before.text, "the same answers"
            for name, score in before.scores.items():
                assert after.scores[name].mean == pytest.approx(score.mean, abs=1e-3)
    command = [sys.executable, "-m", "paretune", "export", str(two), "--method", "dial"]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    assert [*two.glob("export/**/adapter_model.safetensors")]
