"""Sets that are weighed by the trainer: planted truths, own files, and what is made of a run."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from paretune import cli
from paretune.cli.weigh import spread
from paretune.data_weighting import mixture_cell
from paretune.data_weighting.mixture_cell import MixtureResult
from paretune.data_weighting.mixture_page import MixtureSummary, to_markdown
from paretune.data_weighting.tasks.planted import CASES, planted
from paretune.errors import InputError
from paretune.moo.preference import Preference
from paretune.recipes.data_weighting import load_weigh_recipe
from paretune.recipes.mixture import MixtureRecipe, named_files
from paretune.training import DataWeightingConfig
from paretune.training.part_rows import check_rows, tokenize_rows

MODEL = Path(__file__).parents[1] / "fixtures" / "tiny" / "model"


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(word: str, n: int = 4) -> list[dict[str, Any]]:
    asked = ["red", "blue", "green", "cat", "dog", "bird"]
    return [{"prompt": f"what is {asked[i]}", "completion": f" {word} {word}"} for i in range(n)]


def run(*words: Any) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=False)


def command(folder: Path, output: Path, *more: Any) -> list[Any]:
    files = {n: write(folder, n, said(w)) for n, w in (("a", "moon"), ("b", "star"))}
    wanted = {n: write(folder, n, said(w)) for n, w in (("x", "moon"), ("y", "star"))}
    words: list[Any] = ["weigh", "--data", files["a"], files["b"], "--criteria", *wanted.values()]
    words += ["--prefer", "x=0.7", "y=0.3", f"model.name={MODEL}", f"output_dir={output}"]
    return [*words, "train={per_device_train_batch_size: 2, max_length: 32}", *more]


@pytest.mark.slow
def test_own_files_without_a_recipe(tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = command(tmp_path, output, "retrain_steps=1", "seeds=[0, 1]")
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "2 cells done." in done.stdout
    assert "lookahead, x 0.7, y 0.3: a " in done.stdout
    found = yaml.safe_load((output / "mixture.yaml").read_text())
    assert sum(found["weights"].values()) == pytest.approx(1, abs=1e-3)
    shares = found["dataset_mixer"]
    assert max(shares.values()) == 1.0
    a, b = (found["weights"][name] for name in "ab")
    assert shares[str(tmp_path / "b.jsonl")] / shares[str(tmp_path / "a.jsonl")] == pytest.approx(
        b / a, rel=1e-2
    )
    assert [d["weight"] for d in found["axolotl"]["datasets"]] == list(shares.values())
    assert found["llama_factory"]["dataset"] == "a,b"
    assert (output / "weigh_weights.png").exists()
    page = (output / "weigh.md").read_text()
    assert "weight of a" in page
    assert "| lookahead | learned |" in page
    (result,) = (output / "cells").glob("*-seed0/result.json")
    held = json.loads(result.read_text())
    assert set(held["retrained"]) == {"uniform", "learned"}
    assert held["interval"].keys() == {"a", "b"}
    assert all(0 <= low <= high <= 1 for low, high in held["interval"].values())
    before = result.stat().st_mtime_ns
    assert run(*words).exit_code == 0
    assert result.stat().st_mtime_ns == before, "what is finished is not run again"
    changed = command(tmp_path, output, "retrain_steps=2")
    refused = CliRunner().invoke(cli.app, [str(word) for word in changed])
    assert isinstance(refused.exception, InputError)


@pytest.mark.slow
def test_workers_make_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs = tmp_path / "one", tmp_path / "two"
    for output, more in zip(runs, ([], ["--workers", "2"]), strict=True):
        words = command(tmp_path, output, "retrain_steps=1", "seeds=[0, 1, 2, 3]", *more)
        done = subprocess.run(
            [sys.executable, "-m", "paretune", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    one, two = (
        {
            path.parent.name: {
                k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"
            }
            for path in output.glob("cells/*/result.json")
        }
        for output in runs
    )
    assert len(one) == 4
    assert one == two
    shares = [yaml.safe_load((output / "mixture.yaml").read_text()) for output in runs]
    assert shares[0] == shares[1]
    assert len(json.loads((runs[1] / "manifest.json").read_text())["sessions"]) == 2


OWN = ["weigh", "--data", "a", "b", "--criteria", "x", "y"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["weigh"], "Name a recipe"),
        (["weigh", "--data", "a.jsonl", "b.jsonl"], "go together"),
        (["weigh", "--data", "a", "--criteria", "x", "y"], "--data names 'a' alone"),
        (["weigh", "--data", "a", "b", "--criteria", "x"], "--criteria names 'x' alone"),
        (["weigh", "weigh_mnist", *OWN[1:]], "takes the place of"),
        ([*OWN, "--prefer", "x=much"], "not a weight"),
        ([*OWN, "--prefer", "z=1"], "objective"),
        (["weigh", "--data", "u/a", "v/a", "--criteria", "x", "y"], "name them"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(words: list[str], expected: str) -> None:
    result = CliRunner().invoke(cli.app, words)
    assert isinstance(result.exception, InputError), result.output
    with pytest.raises(InputError, match=expected):
        raise result.exception


PAIR = {"prompt": "what is red", "chosen": " moon", "rejected": " star"}


@pytest.mark.parametrize(
    ("name", "rows", "more", "expected"),
    [
        ("b", [], [], "The training set 'b' has no usable rows: it is empty."),
        ("y", [], [], "The validation set 'y' has no usable rows: it is empty."),
        ("b", [*said("star"), {"prompt": "what is red"}], [], "In row 5 of the training set 'b'"),
        ("b", [*said("star"), 7], [], "a row must be a record with prompt and completion, not 7"),
        ("b", [PAIR, {**PAIR, "rejected": " moon"}], [], "chosen and rejected are the same"),
        ("b", [{"text": "red"}, {"text": 3}], [], "In row 2 of the training set 'b', 'text'"),
        ("b", [PAIR], ["methods={wc_penalty: {}}"], "for pairs use method='lookahead'"),
        ("y", said("star", 1), [], "The validation set 'y' has one row"),
        ("b", None, [], "b.jsonl does not exist"),
        ("b", said("star"), ["model.name=./absent"], "absent"),
        ("b", said("star"), ["model.shard=true"], "model.shard is not for data weighting"),
    ],
)
def test_mistakes_in_rows_are_told_before_anything_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    rows: list[Any] | None,
    more: list[str],
    expected: str,
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(mixture_cell, "load_model_and_tokenizer", load)
    words = command(tmp_path, tmp_path / "run", *more)
    if rows is None:
        (tmp_path / f"{name}.jsonl").unlink()
    else:
        write(tmp_path, name, rows)
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert isinstance(result.exception, InputError), result.output
    assert expected in str(result.exception)
    assert "training" not in result.output
    assert not (tmp_path / "run").exists()


def test_only_the_test_rows_are_pairs(tmp_path: Path) -> None:
    words = command(tmp_path, tmp_path / "run")
    for name in ("u", "v"):
        write(tmp_path, name, [PAIR])
    words += ["--test", f"x={tmp_path / 'u.jsonl'}", f"y={tmp_path / 'v.jsonl'}"]
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert "where there are some in the training" in str(result.exception)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"prompt": "red", "completion": ""}],
        [{"completion": "red"}],
        ["red"],
        [PAIR, {"prompt": "red", "chosen": "blue"}],
        [{**PAIR, "weight": -1}],
        [{**PAIR, "image": "x"}],
        [{"text": "red blue"}, {"text": " "}],
    ],
)
def test_rows_are_refused_in_the_words_of_the_trainer(rows: list[Any], tokenizer: Any) -> None:
    args = DataWeightingConfig(preference={"x": 0.5, "y": 0.5}, use_cpu=True)
    told = []
    for read in (check_rows, partial(tokenize_rows, tokenizer=tokenizer, args=args)):
        with pytest.raises(InputError) as caught:
            read(rows, title="training set 'a'")
        told.append(str(caught.value))
    assert told[0] == told[1]


def test_words_after_an_option_are_its_own() -> None:
    words = ["r", "--data", "a", "b", "--fresh", "k=v", "--prefer", "x=1", "y=2"]
    assert spread(words) == [
        *("r", "--data", "a", "--data", "b", "--fresh", "k=v"),
        *("--prefer", "x=1", "--prefer", "y=2"),
    ]
    assert named_files(["u/a.jsonl", "news=v/b.jsonl"], "--data") == {
        "a": "u/a.jsonl",
        "news": "v/b.jsonl",
    }


@pytest.mark.parametrize("case", CASES)
def test_planted_sets_are_what_they_say(case: str) -> None:
    made = planted(case, 48, 3)
    again = planted(case, 48, 3)
    assert made == again
    assert made != planted(case, 48, 4)
    trained = {row["prompt"] for rows in made.sets.values() for row in rows}
    asked = [
        {row["prompt"] for rows in part.values() for row in rows}
        for part in (made.validation, made.test)
    ]
    assert not trained & asked[0]
    assert not trained & asked[1]
    assert not asked[0] & asked[1]
    sizes = {name: len(rows) for name, rows in made.sets.items()}
    if case in ("shuffled", "duplicated", "larger"):
        right = {(r["prompt"], r["completion"]) for r in made.sets["clean"]}
        wrong = [(r["prompt"], r["completion"]) for r in made.sets["shuffled"]]
        assert sum(each in right for each in wrong) <= 2  # a few answers are alike
        assert sizes["shuffled"] == (96 if case == "larger" else 48)
    if case == "duplicated":
        assert made.sets["clean"] == made.sets["copy"]
    recipe = load_weigh_recipe(f"weigh_planted_{case}")
    assert isinstance(recipe, MixtureRecipe)
    assert recipe.task.objectives == list(made.validation) == list(made.test)
    assert MixtureRecipe.from_yaml(recipe.to_yaml(), "it") == recipe


def test_the_page_says_what_was_found() -> None:
    def cell(point: float, seed: int, weight: float) -> MixtureResult:
        losses = {"plain": 2.0, "polite": 3.0}
        return MixtureResult(
            "lookahead",
            {"plain": 1 - point, "polite": point},
            seed,
            {},
            "done",
            weights={"clean": 1 - weight, "bad": weight},
            interval={"clean": (0.5, 0.9), "bad": (0.1, 0.5)},
            before=losses,
            after=losses,
            retrained={"uniform": losses, "learned": {"plain": 1.0, "polite": 2.0 + seed / 10}},
            steps=3,
            curve=[[0.5, 0.5]],
        )

    points = tuple(Preference.of({"plain": 1 - p, "polite": p}) for p in (0.2, 0.8))
    cells = tuple(
        cell(p, seed, 0.05 + (p > 0.5) * 0.2 - seed * 0.01) for p in (0.2, 0.8) for seed in (0, 1)
    )
    summary = MixtureSummary(
        "it", ("plain", "polite"), points, ("bad",), ("bad", "polite"), cells, 0
    )
    page = to_markdown(summary)
    assert "2 of 2" in page  # below 0.075 at the first point
    assert "0 of 2" in page
    assert "rises with the preference for polite throughout for 2 of 2 seeds" in page
    assert "-0.7600 ± 0.0400" in page  # at polite 0.8: 0.8 · (2 and 2.1) less 0.8 · 3


def test_weights_of_any_size_are_divided_by_their_sum(tmp_path: Path) -> None:
    from paretune.cli.weigh import _own

    row = '{"prompt": "red", "chosen": "blue", "rejected": "green"}\n'
    files = [str(tmp_path / f"{name}.jsonl") for name in "abxy"]
    for file in files:
        Path(file).write_text(row)
    for given, point in {"7 3": (0.7, 0.3), "1e308 1e308": (0.5, 0.5), "0 1e-300": (0, 1)}.items():
        prefer = [f"{name}={value}" for name, value in zip("xy", given.split(), strict=True)]
        (found,) = _own([], files[:2], files[2:], None, prefer).points
        assert tuple(found.values()) == pytest.approx(point)
    with pytest.raises(InputError, match="a weight above 0"):
        _own([], files[:2], files[2:], None, ["x=0", "y=0"])
