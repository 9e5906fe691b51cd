"""A base that is split over gloo processes (FSDP2) trains as it does in one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paretune.errors import InputError
from paretune.models import load_model_and_tokenizer

WORKER = Path(__file__).with_name("shard_worker.py")
METHODS = (
    *("clamp", "padded", "cpo", "per_objective", "checkpointing", "conditioned"),
    *("pwg", "mgda", "raco"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, lasting_llama: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("base")
    lasting_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(base: Path) -> Callable[..., int]:
    def start(folder: Path, processes: int, *methods: str, stop: int = 0) -> int:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={processes}", str(WORKER)]
        command += [str(base), str(folder), ",".join(methods), str(stop)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 or stop, done.stderr[-3000:]
        return done.returncode

    return start


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., int]) -> Path:
    """Every method on two processes, undisturbed."""
    folder: Path = tmp_path_factory.mktemp("two")
    run(folder, 2, *METHODS)
    return folder


@pytest.mark.slow
def test_processes_equal_one(tmp_path: Path, run: Callable[..., int], of_two: Path) -> None:
    run(tmp_path / "1", 1, *METHODS)
    run(tmp_path / "4", 4, "clamp")
    cases = [(2, of_two, method) for method in METHODS] + [(4, tmp_path / "4", "clamp")]
    for n, folder, method in cases:
        (alone,) = values(tmp_path / "1" / method)
        found = values(folder / method)
        assert len(found) == n
        (said,) = answers(tmp_path / "1" / method)
        assert any(said)
        assert answers(folder / method) == [said] * n, "and everybody answers"
        assert all(each[:-1] == found[0][:-1] for each in found), "the same on every rank"
        torch.testing.assert_close(
            torch.tensor(found[0][:-1]), torch.tensor(alone[:-1]), rtol=0, atol=1e-6
        )
        sizes = [each[-1] for each in found]
        assert sum(sizes) == alone[-1], "each number of the base is in one process"
        assert max(sizes) < 1.1 * alone[-1] / n
        expected = adapter(tmp_path / "1" / method)
        for name, value in adapter(folder / method).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_killed_training_resumes_bit_for_bit(
    tmp_path: Path, run: Callable[..., int], of_two: Path
) -> None:
    for method in ("clamp", "conditioned"):
        assert run(tmp_path, 2, method, stop=3) != 0
        assert not (tmp_path / method / "adapter").exists()
    run(tmp_path, 2, "clamp", "conditioned")
    for method in ("clamp", "conditioned"):
        whole, killed = of_two / method, tmp_path / method
        assert values(killed) == values(whole)
        expected = adapter(whole)
        for name, value in adapter(killed).items():
            assert torch.equal(value, expected[name]), name


def test_what_is_not_split(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    load_model_and_tokenizer(base, shard=True)  # of one process there is nothing to split
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="not for reward models"):
        load_model_and_tokenizer(base, shard=True, head="new_score")


def values(folder: Path) -> list[list[float]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("values-*.json"))]


def answers(folder: Path) -> list[list[str]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("answers-*.json"))]
