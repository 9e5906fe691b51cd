"""Two gloo processes against one on the joined batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow  # they train in processes of their own

WORKER = Path(__file__).with_name("distributed_worker.py")


METHODS = ("one_pass", "per_objective", "parts", "layerwise", "pwg", "clamp")


def run(folder: Path, processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", str(WORKER), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    run(tmp_path / "one", 1)
    run(tmp_path / "two", 2)
    for method in METHODS:
        one, two = tmp_path / "one" / method, tmp_path / "two" / method
        alone, *_ = ranks(one)
        first, second = ranks(two)
        assert first == second, "λ* must be identical on every rank"
        torch.testing.assert_close(torch.tensor(first), torch.tensor(alone), rtol=0, atol=1e-6)
        name = "model.safetensors" if method == "layerwise" else "adapter_model.safetensors"
        expected, found = (load_file(folder / "adapter" / name) for folder in (one, two))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def ranks(folder: Path) -> list[list[float]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("lambda-*.json"))]
