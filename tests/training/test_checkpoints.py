"""Resuming: from what, and when it is refused."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from paretune import InputError
from paretune.errors import UntrainedError
from paretune.experiment.train_point import train_point
from paretune.training.checkpoints import newest_complete

SAVES: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def adapter(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other(file: Path) -> None:
    file.write_bytes(b"[1, 2, 3]\n")


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = (empty, cut, other, flipped, folder_instead, Path.unlink)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the checkpoints of one training are kept for all tests."""
    return tmp_path_factory.mktemp("saved")


@pytest.fixture
def make(clamp: Any, random_pairs: Any) -> Any:
    """A factory of trainers that write checkpoints at the steps 2 and 4, their last."""
    return lambda **options: clamp(**{"train": random_pairs(shared=False), **SAVES, **options})


@pytest.fixture
def checkpoints(make: Any, saved: Path, tmp_path: Path) -> Path:
    """A folder with the complete checkpoints of steps 2 and 4."""
    if not (saved / "run").exists():
        make().train()
        shutil.copytree(tmp_path / "run", saved / "run")
    elif not (tmp_path / "run").exists():
        shutil.copytree(saved / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    checkpoints: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    newest, older = checkpoints / "checkpoint-4", checkpoints / "checkpoint-2"
    for name in sorted(os.listdir(newest)):
        kept = newest.with_name("kept")
        shutil.copytree(newest, kept)
        damage(newest / name)
        assert newest_complete(checkpoints) == str(older), name
        shutil.rmtree(newest)
        kept.rename(newest)
    assert newest_complete(checkpoints) == str(newest)
    told = {r.getMessage().split(": ")[-1] for r in caplog.records}
    assert any("optimizer.pt" in each for each in told)


def test_training_goes_on_from_the_older_one_to_the_same_end(make: Any, checkpoints: Path) -> None:
    whole = make()
    whole.train(resume_from_checkpoint=True)  # is over
    empty(checkpoints / "checkpoint-4" / "adapter_model.safetensors")
    resumed = make()
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(adapter(resumed), adapter(whole), rtol=0, atol=0)


def test_a_damaged_checkpoint_that_is_named_is_a_sentence(make: Any, checkpoints: Path) -> None:
    path = checkpoints / "checkpoint-4"
    cut(path / "optimizer.pt")
    with pytest.raises(InputError, match=r"checkpoint-4 is damaged \('optimizer.pt' is not as"):
        make().train(resume_from_checkpoint=str(path))
    (path / "paretune_state.json").unlink()
    with pytest.raises(InputError, match="not a complete checkpoint of this trainer"):
        make().train(resume_from_checkpoint=str(path))


def test_a_checkpoint_of_another_training_is_refused(
    make: Any, checkpoints: Path, random_pairs: Any, tiny_lora: Any
) -> None:
    pairs = random_pairs(shared=False)
    swapped = {name: [dict(row) for row in rows] for name, rows in pairs.items()}
    swapped["two"][0]["chosen"], swapped["two"][0]["rejected"] = (
        swapped["two"][0]["rejected"],
        swapped["two"][0]["chosen"],
    )
    weighted = {**pairs, "one": [{**row, "weight": 0.5 + i} for i, row in enumerate(pairs["one"])]}
    others: dict[str, dict[str, Any]] = {
        "training data": {"train": swapped},
        "training data ": {"train": weighted},
        "preference.one": {"preference": {"one": 0.4, "two": 0.6}},
        "arguments.learning_rate": {"learning_rate": 2e-2},
        "arguments.mu": {"mu": 10.0},
        "arguments.seed": {"seed": 1},
        "arguments.beta": {"beta": 0.5},
        "adapter.default.r": {"model": tiny_lora(fresh=True, dropout=0.1, r=2)},
    }
    for what, options in others.items():
        with pytest.raises(InputError, match="is of another training") as caught:
            make(**options).train(resume_from_checkpoint=True)
        assert f"training: {what.strip()} was" in str(caught.value)
    # What does not change a step may differ.
    make(logging_steps=3, per_device_eval_batch_size=2).train(resume_from_checkpoint=True)


class _Kill(Exception):
    """Stands for a killed process."""


class _KillAt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise _Kill


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["joint", "independent"])
def test_worker_processes_that_live_on_draw_the_rows_of_their_epoch(
    clamp: Any, random_pairs: Any, tiny_lora: Any, sampling: str
) -> None:
    """With and without workers, persistent or not, killed or not: the same adapter."""
    # Dropout draws from the stream of random numbers that starting workers take from.
    pairs, model = random_pairs(n=7, shared=sampling == "joint"), partial(tiny_lora, fresh=True)
    settings: dict[str, Any] = {
        "train": pairs,
        "sampling": sampling,
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    plain = clamp(folder="plain", model=model(), **settings)
    plain.train()
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    persistent = clamp(folder="persistent", model=model(), **settings, **workers)
    persistent.train()
    torch.testing.assert_close(adapter(persistent), adapter(plain), rtol=0, atol=0)
    with pytest.raises(_Kill):
        clamp(folder="killed", model=model(), callbacks=[_KillAt()], **settings, **workers).train()
    resumed = clamp(folder="killed", model=model(), **settings, **workers)
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(adapter(resumed), adapter(plain), rtol=0, atol=0)


def test_a_training_without_a_step_is_an_error(clamp: Any) -> None:
    trainer = clamp(max_steps=3, max_nonfinite_steps=9)
    trainer._train_pairs.reference = trainer._train_pairs.reference * float("nan")
    with pytest.raises(UntrainedError, match=r"No step was taken.* in all 3 steps"):
        trainer.train()
    assert trainer.totals.summary()["skipped_steps"] == 3


@pytest.mark.slow
def test_a_training_that_changes_no_weight_is_an_error(
    clamp: Any, random_pairs: Any, tmp_path: Path
) -> None:
    rows = random_pairs(shared=False)
    with pytest.raises(UntrainedError, match="No weight changed in 1 step although"):
        clamp(train=rows, learning_rate=1e-60, max_steps=30, warmup_steps=9).train()
    # bfloat16 rounds small changes away, which may add up in the optimiser: it has 20 steps.
    narrow = clamp(folder="narrow", train=rows, learning_rate=1e-60, max_steps=30)
    narrow.model.bfloat16()
    with pytest.raises(UntrainedError, match="No weight changed in 20 steps although"):
        narrow.train()
    # Objectives that oppose each other exactly: the trainer says so, and no point is made of it.
    with pytest.raises(UntrainedError, match="the combined gradient"):
        train_point(clamp(folder="opposed"), tmp_path / "point", lambda phase, done: None)
    assert not (tmp_path / "point" / "training.json").exists()
