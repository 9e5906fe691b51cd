"""Damaged files that a command does not need are told of."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paretune.results.damage import damaged_files, warn_of_damage


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    (run / "points" / "a").mkdir(parents=True)
    (run / "front.json").write_text("{}")
    (run / "points" / "a" / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    tensors = {"a": torch.ones(3, 2), "b": torch.zeros(0), "c": torch.ones(5, dtype=torch.bfloat16)}
    save_file(tensors, run / "points" / "a" / "adapter_model.safetensors", {"format": "pt"})
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "half.json").write_text("{")
    return run


def test_a_run_that_is_whole_is_quiet(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (run / "points" / "a" / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # being written
    warn_of_damage(run)
    assert not caplog.records


@pytest.mark.parametrize(
    "name", ["front.json", "points/a/log.jsonl", "points/a/adapter_model.safetensors"]
)
@pytest.mark.parametrize("kind", ["empty", "cut", "random", "longer"])
def test_each_damage_is_told_by_name(
    run: Path, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = run / name
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "cut": b'{"step": 1}\n{"st\n' if path.suffix == ".jsonl" else whole[:-1],
        "random": bytes(range(128, 256)),
        "longer": whole + b"\x00 x\n",
    }
    path.write_bytes(damaged[kind])
    assert damaged_files(run) == [path]
    with caplog.at_level(logging.WARNING):
        warn_of_damage(run)
    (record,) = caplog.records
    assert str(path) in record.getMessage()


def test_a_header_that_lies_is_damage(run: Path) -> None:
    path = run / "points" / "a" / "adapter_model.safetensors"
    for header in ([], {"a": 1}, {"a": {"data_offsets": [0]}}, {"a": {"data_offsets": [0, 99]}}):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        assert damaged_files(run) == [path]
