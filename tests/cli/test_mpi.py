"""Processes that mpirun starts are those that torchrun starts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paretune.machine import join_mpi

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def joined(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> list[str | None]:
    for name in TORCHRUN:
        monkeypatch.setenv(name, "")  # to be undone
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    join_mpi()
    return [os.environ.get(name) for name in TORCHRUN]


def open_mpi(size: int, rank: int, local_size: int) -> dict[str, str]:
    values = {"SIZE": size, "RANK": rank, "LOCAL_RANK": rank % local_size, "LOCAL_SIZE": local_size}
    return {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in values.items()}


def test_names_of_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    intel = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    here = ["127.0.0.1", "29500"]
    with monkeypatch.context() as patch:
        assert joined(patch, open_mpi(2, 1, 2)) == ["2", "1", "1", "2", *here]
    with monkeypatch.context() as patch:  # where they meet must be said by who knows
        assert joined(patch, open_mpi(4, 3, 2)) == ["4", "3", "1", "2", None, None]
    with monkeypatch.context() as patch:
        assert joined(patch, intel | {"MASTER_PORT": "1"}) == ["2", "1", "1", "2", here[0], "1"]
    for alone in ({"PMI_SIZE": "8", "PMI_RANK": "1"}, open_mpi(1, 0, 1)):
        with monkeypatch.context() as patch:
            assert joined(patch, alone) == [None] * 6
    with monkeypatch.context() as patch:  # torchrun goes before
        given = {"WORLD_SIZE": "1", **open_mpi(2, 1, 2)}
        assert joined(patch, given) == ["1", *[None] * 5]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed")
def test_accelerate_by_mpirun_does_what_torchrun_does(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("localhost\n" * 2)  # a line a process
    accelerate = [
        *("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--mpirun_hostfile", str(tmp_path / "hosts")),
    ]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    as_root = {f"{name}_ALLOW_RUN_AS_ROOT": "1" for name in ("OMPI", "PRTE")}
    as_root |= {f"{name}_CONFIRM": "1" for name in as_root}
    found = {}
    for name, launcher in (("accelerate", accelerate), ("torchrun", torchrun)):
        command = [
            *(sys.executable, "-m", *launcher, "-m", "paretune", "sweep", str(TINY / "tiny.yaml")),
            *(f"model.name={TINY / 'model'}", f"data.path={TINY / 'pairs.jsonl'}"),
            *("train.max_steps=4", "model.shard=true", "rewards=null", f"output_dir={name}"),
        ]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | as_root | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("[1/2] harmless0.20-helpful0.80: training") == 1
        points = tmp_path / name / "points"
        found[name] = {
            str(file.relative_to(points)): file.read_bytes()
            for pattern in ("*/adapter_model.safetensors", "*/answers.jsonl")
            for file in points.glob(pattern)
        }
    assert len(found["torchrun"]) == 4
    assert found["accelerate"] == found["torchrun"]
