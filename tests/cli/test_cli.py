import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from paretune import cli
from paretune.cli.arguments import weights_and_overrides
from paretune.cli.progress import Estimate, remaining_text
from paretune.cli.tables import answer_tables, front_table
from paretune.errors import InputError, TrainingStoppedError
from paretune.results.front import Front, FrontPoint, ObjectiveMetrics, Score


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "paretune", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [("--help",), ("sweep", "--help"), ("--version",)])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys; sys.argv = ['paretune', *{!r}]\n"
        "from paretune.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {{'torch', 'transformers', 'numpy', 'datasets'}} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code.format(arguments)], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", "demoo"], "did you mean 'demo'"),
        (["sweep", "demo", "loss.betta=1"], "did you mean 'loss.beta'"),
        (["sweep", "demo", "sweep.preferences=[[0.5, 0.6]]"], "must sum to 1"),
        (["train", "demo"], "--prefer concise=... informative=..."),
        (["train", "demo", "--prefer", "concice=1"], "did you mean 'concise'"),
        (["evaluate", "absent"], "There is no folder 'absent'"),
        (["recipes", "absent"], "No recipe 'absent'"),
    ],
)
def test_mistakes_exit_with_code_2(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""


@pytest.mark.slow
def test_yaml_and_data_mistakes(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("data: {loader: demo\nsweep: 1")
    result = run("sweep", str(bad))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "bad.yaml" in result.stderr
    absent = tmp_path / "absent.jsonl"
    result = run("sweep", "hh_local", f"data.path={absent}", f"output_dir={tmp_path}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "absent.jsonl does not exist" in result.stderr


@pytest.mark.slow
def test_recipes_are_listed_and_printed() -> None:
    listed = run("recipes").stdout
    assert {line.split()[1] for line in listed.splitlines()} >= {"demo", "saferlhf_clamp"}
    assert run("recipes", "demo").stdout.startswith("# The demo")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("wrong\nhere"), 2, "error: wrong here\n"),
        (TrainingStoppedError("no way on"), 1, "error: no way on\n"),
        (KeyboardInterrupt(), 130, "to go on: paretune sweep demo loss.beta=0.2\n"),
    ],
)
def test_what_ends_a_command(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("paretune.runs.sweep.run_sweep", stop)
    monkeypatch.setattr(sys, "argv", ["paretune", "sweep", "demo", "loss.beta=0.2", "--fresh"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert capsys.readouterr().err.endswith(words)


def test_weights_and_overrides_are_told_apart() -> None:
    assert weights_and_overrides(None, ["train.max_steps=1"]) == ({}, ["train.max_steps=1"])
    assert weights_and_overrides(["a=0.5"], ["b=0.5", "train.max_steps=1", "output_dir=x"]) == (
        {"a": 0.5, "b": 0.5},
        ["train.max_steps=1", "output_dir=x"],
    )
    assert weights_and_overrides(["a=0.5,b=0.5"], None) == ({"a": 0.5, "b": 0.5}, [])
    with pytest.raises(InputError, match="'b' is not a weight"):
        weights_and_overrides(["a=1"], ["b"])


def test_weights_in_any_unit(capsys: pytest.CaptureFixture[str]) -> None:
    assert weights_and_overrides(["a=7"], ["b=1", "c=0"])[0] == {"a": 0.875, "b": 0.125, "c": 0}
    assert "divided by their sum: a 0.875, b 0.125, c 0." in capsys.readouterr().err
    assert weights_and_overrides(["a=1e308"], ["b=1e308"])[0] == {"a": 0.5, "b": 0.5}
    assert weights_and_overrides(["a=0.3"], ["b=0.7"])[0] == {"a": 0.3, "b": 0.7}
    assert capsys.readouterr().err.count("divided") == 1
    for wrong, words in (
        (["a=0.5", "a=0.5"], "names 'a' twice"),
        (["a=nan"], "must be finite"),
        (["a=inf", "b=1"], "must be finite"),
        (["a=-1"], "at least 0"),
        (["a=0", "b=0"], "a weight above 0"),
    ):
        with pytest.raises(InputError, match=words):
            weights_and_overrides(wrong, None)


def test_the_estimate_of_what_remains() -> None:
    estimate = Estimate(2)
    estimate.phase("prepare", 0.0, now=0.0)
    assert estimate.remaining(5.0) is None
    estimate.phase("train", 0.0, now=30.0)
    assert estimate.remaining(30.0) is None  # preparing says little of training
    estimate.phase("train", 0.5, now=60.0)
    # 30 s of training, 10 + 20 of the rest by the usual shares, and a second point of 30 + 90.
    assert estimate.remaining(60.0) == pytest.approx(30 + 30 + 120)
    estimate.phase("evaluate", 0.0, now=90.0)
    estimate.phase("generate", 0.0, now=94.0)
    estimate.phase("generate", 1.0, now=100.0)
    estimate.phase("prepare", 0.0, now=100.0)
    assert estimate.remaining(100.0) == pytest.approx(30 + 60 + 4 + 6)
    estimate.phase("train", 0.0, now=102.0)
    assert estimate.remaining(102.0) == pytest.approx(60 + 4 + 6)


def test_points_that_leave_out_phases_are_told_by_their_mean() -> None:
    """One training, and points that are but measured: no later one is taken for a training."""
    estimate = Estimate(9)
    estimate.point(now=0.0)
    estimate.phase("train", 0.0, now=0.0)
    for begin in (100.0, 105.0, 110.0, 115.0):
        estimate.point(now=begin)
        estimate.phase("prepare", 0.0, now=begin)
        estimate.phase("evaluate", 0.0, now=begin + 1)
    estimate.left(4)
    found = estimate.remaining(116.0)
    assert found is not None
    assert 4 * 115 / 4 < found < 150  # and not four trainings more


def test_remaining_text() -> None:
    texts = [remaining_text(seconds) for seconds in (None, 1, 42, 200, 10000)]
    assert texts == [
        "time left unknown yet",
        "about 5 s left",
        "about 40 s left",
        "about 3 min left",
        "about 2.8 h left",
    ]


def test_the_printed_front(tmp_path: Path) -> None:
    points = []
    for weight, words in ((0.75, "Short."), (0.25, "[bold]Long[/bold] and longer.")):
        metrics = {"a": ObjectiveMetrics(weight, 0.5, 0.1), "b": ObjectiveMetrics(1 - weight, 1, 2)}
        folder = f"points/{weight}"
        preference = {"a": weight, "b": 1 - weight}
        points.append(
            FrontPoint(preference, metrics, 0.5, folder=folder, scores={"a": Score(1, 0.25, 4)})
        )
        (tmp_path / folder).mkdir(parents=True)
        row = {
            "prompt": [{"role": "user", "content": "Why?"}],
            "response": words,
            "finished": weight > 0.5,
            "scores": {},
        }
        (tmp_path / folder / "answers.jsonl").write_text(json.dumps(row) + "\n")
    front = Front.of(points, name="mine", method="clamp")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(front_table(front))
    for table in answer_tables(front.points, tmp_path):
        console.print(table)
    text = console.export_text()
    for expected in ("(0.75, 0.25)*", "0.750   50%  +0.100", "1.00 ±0.25", "Why?"):
        assert expected in text
    assert "[bold]Long[/bold] and longer. [...]" in text


def test_threads_wait_passively_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "200")
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["KMP_BLOCKTIME"] == "200"


def test_the_shell_completes_commands_and_recipes(tmp_path: Path) -> None:
    def completed(words: str) -> list[str]:
        command = [sys.executable, "-c", "from paretune.cli import main; main()"]
        variables = {
            "_PARETUNE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
        return done.stdout.split()

    assert completed("paretune sw") == ["sweep"]
    assert completed("paretune sweep demo_s") == ["demo_sweep"]
