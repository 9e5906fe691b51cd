"""Run folders that 0.1 left behind, one finished and one killed: read, used and gone on with.

How they were made stands in ``fixtures/README.md``. They say that they were made in ``/fixtures``,
where nothing is any more: a test moves them, with the model and the data, to a folder of its own.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from paretune import cli

FIXTURES = Path(__file__).parent / "fixtures"
MADE_IN = "/fixtures"
POINTS = ("harmless0.20-helpful0.80", "harmless1.00-helpful0.00")
CHECKPOINT = f"points/{POINTS[1]}/checkpoints/checkpoint-6"
TOLERANCE = 1e-3  # of losses between versions of torch; one version gives the same bits

# Files that torch pickles, which the fixtures hold as JSON and safetensors.
PICKLED = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
UNREAD = "training_args.bin"  # must be there, but its content plays no part


# ---------------------------------------------------------------------- the fixtures


def pack(checkpoint: Path) -> None:
    """Rewrite what torch pickled in a checkpoint as ``torch.json`` and ``torch.safetensors``."""
    tensors: dict[str, Tensor] = {}
    packed = {}
    for name in PICKLED:
        value = torch.load(checkpoint / name, weights_only=False)
        packed[name] = _packed(value, name, tensors)
        (checkpoint / name).unlink()
    (checkpoint / UNREAD).unlink()
    (checkpoint / "torch.json").write_text(json.dumps(packed) + "\n", encoding="utf-8")
    save_file(tensors, checkpoint / "torch.safetensors")


def unpack(checkpoint: Path) -> None:
    """What `pack` took away, made anew."""
    tensors = load_file(checkpoint / "torch.safetensors")
    packed = json.loads((checkpoint / "torch.json").read_text(encoding="utf-8"))
    for name, value in packed.items():
        torch.save(_unpacked(value, tensors), checkpoint / name)
    torch.save({}, checkpoint / UNREAD)
    for name in ("torch.json", "torch.safetensors"):
        (checkpoint / name).unlink()


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.contiguous()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": value.dtype.name}
    if isinstance(value, dict):
        rows = [[key, _packed(each, f"{name}/{key}", tensors)] for key, each in value.items()]
        return {"dict": rows}
    if isinstance(value, list | tuple):
        items = [_packed(each, f"{name}/{n}", tensors) for n, each in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    return value


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"array": numbers, "dtype": dtype}:
            return np.array(numbers, dtype=dtype)
        case {"dict": rows}:
            return {key: _unpacked(each, tensors) for key, each in rows}
        case {"tuple": items}:
            return tuple(_unpacked(each, tensors) for each in items)
        case list():
            return [_unpacked(each, tensors) for each in value]
    return value


@pytest.fixture
def fixtures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All fixtures in a folder of the test's own, as if they had been made there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "moved"
    shutil.copytree(FIXTURES, folder)
    for path in folder.rglob("*"):
        if path.suffix in (".yaml", ".json", ".md"):
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(MADE_IN, folder.as_posix()), encoding="utf-8")
    unpack(folder / "run_0_1_unfinished" / CHECKPOINT)
    return folder


@pytest.fixture
def run(fixtures: Path) -> Path:
    """The finished run."""
    return fixtures / "run_0_1"


@pytest.fixture
def unfinished(fixtures: Path) -> Path:
    """The run that was killed in its second point."""
    return fixtures / "run_0_1_unfinished"


def paretune(*arguments: str | Path, typed: str | None = None) -> str:
    """What a command prints; it must succeed."""
    given = [str(each) for each in arguments]
    result = CliRunner().invoke(cli.app, given, input=typed, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every file."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def losses(run: Path) -> dict[str, dict[str, float]]:
    """Of every point in a front, by its name."""
    points = json.loads((run / "front.json").read_text(encoding="utf-8"))["points"]
    return {
        Path(point["folder"]).name: {n: of["loss"] for n, of in point["metrics"].items()}
        for point in points
    }


def assert_same_losses(ours: Path, theirs: Path) -> None:
    found, expected = losses(ours), losses(theirs)
    assert list(found) == list(expected) == list(POINTS)
    for name in POINTS:
        assert found[name] == pytest.approx(expected[name], rel=TOLERANCE)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]


def test_fixtures_hold_no_pickle_and_no_place() -> None:
    files = [path for path in FIXTURES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 500_000
    for path in files:
        assert path.suffix not in (".pt", ".pth", ".bin", ".pkl")
        content = path.read_bytes()
        assert not [place for place in (b"/tmp/", b"/home/", b"/root/") if place in content], path


# ---------------------------------------------------------------------- the finished run


def test_a_finished_sweep_is_finished(run: Path) -> None:
    before = state(run)
    inputs = [f"model.name={run.parent}/tiny/model", f"data.path={run.parent}/tiny/pairs.jsonl"]
    inputs.append("method.mu=100")  # the default of 0.1
    for again in ([run / "recipe.yaml"], [run.parent / "tiny/tiny.yaml", *inputs]):
        shown = paretune("sweep", *again, f"output_dir={run}")
        assert "tiny: clamp, test split" in shown
        assert "2 of 2 points non-dominated" in shown
        assert state(run) == before


@pytest.mark.slow
def test_it_is_evaluated(run: Path) -> None:
    before, front = state(run), (run / "front.json").read_bytes()
    assert "tiny: clamp, test split" in paretune("evaluate", run)
    after = state(run)
    assert list(after) == list(before)
    # The front is written anew, as it was.
    assert {n for n in after if after[n] != before[n]} <= {"front.json", "front.png"}
    assert (run / "front.json").read_bytes() == front
    paretune("evaluate", run, "evaluation.max_new_tokens=3")
    assert_same_losses(run / "evaluation-test", run)
    assert after.items() <= state(run).items()
    assert len(rows(run / f"evaluation-test/points/{POINTS[0]}/answers.jsonl")) == 3


@pytest.mark.slow
def test_it_is_reported(run: Path) -> None:
    before = state(run)
    assert paretune("report", run).splitlines()[-1] == f"Open {run / 'report.html'}"
    assert before.items() <= state(run).items()
    page = (run / "report.html").read_text(encoding="utf-8")
    answer = rows(run / f"points/{POINTS[1]}/answers.jsonl")[0]
    assert answer["response"] in page
    assert answer["prompt"][-1]["content"] in page
    assert "0.1.0.dev0" in page  # the version that made it
    for name in POINTS:
        assert (run / f"figures/steps_{name}.png").exists()
        assert name in (run / f"points/{name}/README.md").read_text(encoding="utf-8")


def test_it_is_exported(run: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    before = state(run)
    target = tmp_path / "export"
    assert "2 points" in paretune("export", run, "--to", target, "--merge")
    assert state(run) == before
    manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
    assert [point["name"] for point in manifest["points"]] == list(POINTS)
    ids = torch.arange(5, 15)[None]
    logits = []
    for name in POINTS:
        base = AutoModelForCausalLM.from_pretrained(target / "base")
        adapted = PeftModel.from_pretrained(base, target / "adapters" / name)
        merged = AutoModelForCausalLM.from_pretrained(target / "models" / name)
        with torch.no_grad():
            logits.append(adapted.eval()(ids).logits)
            torch.testing.assert_close(merged.eval()(ids).logits, logits[-1], rtol=0, atol=1e-4)
    assert not torch.allclose(*logits)


def test_it_is_talked_to(run: Path) -> None:
    before = state(run)
    typed = "red cat\n/prefer harmless=1\nred cat\n/quit\n"
    shown = paretune("chat", run, "--prefer", "harmless=0.2", "helpful=0.8", typed=typed)
    assert f"For harmless 0.2, helpful 0.8: {POINTS[0]}, whose largest" in shown
    assert f"For harmless 1, helpful 0: {POINTS[1]}, whose largest" in shown
    assert shown.count("> red cat\n") == 2
    assert "error" not in shown
    assert "3 test prompts" in paretune("chat", run, "--lengths", "3")
    assert state(run) == before


# ---------------------------------------------------------------------- the unfinished run


def test_what_is_there_of_a_killed_run_can_be_talked_to(unfinished: Path) -> None:
    before = state(unfinished)
    shown = paretune("chat", unfinished, typed="red cat\n/quit\n")
    assert f"{POINTS[0]}, whose largest p·loss is the least of 1 on the test split" in shown
    assert state(unfinished) == before


@pytest.mark.slow
def test_a_killed_sweep_goes_on_from_its_checkpoint(unfinished: Path, run: Path) -> None:
    first, second = (unfinished / "points" / name for name in POINTS)
    before, recipe = state(first), (unfinished / "recipe.yaml").read_bytes()
    trained = json.loads((unfinished / CHECKPOINT / "trainer_state.json").read_text())
    shown = paretune("sweep", unfinished / "recipe.yaml")
    assert "2 of 2 points non-dominated" in shown
    assert state(first) == before
    assert (unfinished / "recipe.yaml").read_bytes() == recipe
    assert list(state(unfinished)) == list(state(run))
    # Its first half is the killed process's, down to the seconds, and its end that of the other.
    log = rows(second / "log.jsonl")
    assert [row["step"] for row in log if "time/step" in row] == list(range(1, 13))
    assert log[:6] == trained["log_history"][:6]
    assert_same_losses(unfinished, run)
    manifest = json.loads((unfinished / "manifest.json").read_text(encoding="utf-8"))
    began, ended = manifest["sessions"]
    assert began["paretune"] == "0.1.0.dev0"
    assert ended["started"] > began["started"]

    after = state(unfinished)
    paretune("sweep", unfinished / "recipe.yaml")
    assert state(unfinished) == after
