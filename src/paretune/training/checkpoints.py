"""Checkpoints that a kill at any moment cannot spoil, and that a damaged file does not mislead."""

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from paretune.errors import InputError
from paretune.files import sync, write_json
from paretune.training.totals import Totals

logger = logging.getLogger(__name__)

_MARK = "paretune_state.json"  # written last: a checkpoint without it is incomplete
_TENSORS = "paretune_state.safetensors"
_OPTIMIZER = "optimizer.pt"
_CHUNK = 1 << 24


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...


class CompleteCheckpoints(TrainerCallback):
    """Writes the owner's state into each checkpoint once all else is there and on the disk.

    Tensors in it go to a file of their own, the rest must be of JSON's kinds. The mark holds the
    size and checksum of every file, and its own.
    """

    def __init__(self, owner: _Stateful) -> None:
        self._owner = owner

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its random state
        if not args.should_save:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        kept = self._owner.state_dict()
        tensors = {key: value for key, value in kept.items() if isinstance(value, Tensor)}
        if tensors:
            save_file(tensors, folder / _TENSORS)
        rest = {key: value for key, value in kept.items() if key not in tensors}
        files = {}
        for path in sorted(folder.rglob("*")):
            if path.name != _MARK:
                sync(path)
            if path.is_file() and path.name != _MARK:
                files[path.relative_to(folder).as_posix()] = _file_digest(path)
        sync(folder)
        content = {"state": rest, "files": files}
        write_json(folder / _MARK, {**content, "digest": _digest(content)})
        sync(folder.parent)
        # transformers rotates before the newest one is complete; a trainer that waits does it here.
        rotate_checkpoints(
            output_dir=args.output_dir,
            save_total_limit=args.save_total_limit,
            best_model_checkpoint=state.best_model_checkpoint,
            use_mtime=True,
        )


def read_state(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """The owner's state in a complete checkpoint, none of whose files is damaged.

    Raises:
        InputError: if the checkpoint is incomplete, damaged, or was written by another trainer.
    """
    path = Path(checkpoint)
    if not (path / _MARK).exists():
        raise InputError(
            f"{checkpoint} is not a complete checkpoint of this trainer ({_MARK} is missing): "
            "resume from another one."
        )
    if (damage := _damage(path)) is not None:
        raise InputError(f"{checkpoint} is damaged ({damage}): resume from another one.")
    mark = _read_mark(path)
    state: dict[str, Any] = mark["state"]
    if mark.get("old"):
        log = TrainerState.load_from_json(str(path / TRAINER_STATE_NAME)).log_history
        state |= {"identity": None, "totals": Totals.from_log(log).to_json()}
    tensors = path / _TENSORS
    return state | (load_file(tensors) if tensors.exists() else {})


def resumable(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint holds the optimiser, which ``save_only_model`` leaves out."""
    return (Path(checkpoint) / _OPTIMIZER).exists()


def finished_state(
    checkpoint: str, args: TrainingArguments, patience: int = 0
) -> TrainerState | None:
    """The trainer's state in a checkpoint after which there is nothing to train; else None.

    Args:
        patience: That of early stopping; 0 without.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    saved = state.stateful_callbacks.get("EarlyStoppingCallback")
    waited = saved["attributes"]["early_stopping_patience_counter"] if saved else 0
    stopped = 0 < patience <= waited
    if args.max_steps > 0:
        return state if stopped or state.global_step >= args.max_steps else None
    return state if stopped or state.epoch >= args.num_train_epochs else None


def newest_complete(folder: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint in a folder that was written to its end; None if there is none.

    One that is damaged gives way to the one before, with a warning that names the file.
    """
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if number and (path / _MARK).exists():
            found.append((int(number[1]), path))
    for _, path in sorted(found, reverse=True):
        if (damage := _damage(path)) is None:
            return str(path)
        logger.warning("The checkpoint '%s' is passed over: %s.", path, damage)
    return None


def difference(saved: Any, now: Any, where: str = "") -> str | None:
    """The first place in which two trees of JSON differ, as a sentence's part; None if they agree.

    >>> difference({"a": {"b": 1}}, {"a": {"b": 2}})
    'a.b was 1 and is 2'
    """
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        for key in [*saved, *(key for key in now if key not in saved)]:
            inner = f"{where}.{key}" if where else str(key)
            found = difference(saved.get(key), now.get(key), inner)
            if found is not None:
                return found
        return None
    return None if saved == now else f"{where} was {saved!r} and is {now!r}"


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if they are as they were written."""
    try:
        mark = _read_mark(checkpoint)
        for name, digest in mark["files"].items():
            path = checkpoint / name
            if not path.is_file():
                return f"'{name}' is missing"
            if digest is not None and _file_digest(path) != digest:
                return f"'{name}' is not as it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"'{_MARK}' is not as it was written"
    return None


def _read_mark(checkpoint: Path) -> dict[str, Any]:
    mark: dict[str, Any] = json.loads((checkpoint / _MARK).read_text(encoding="utf-8"))
    if isinstance(mark["files"], list):  # 0.1 wrote names, without checksums
        state = {key: value for key, value in mark.items() if key != "files"}
        return {"state": state, "files": dict.fromkeys(mark["files"]), "old": True}
    if mark.pop("digest") != _digest(mark):
        raise ValueError("another digest")
    return mark


def _digest(content: Mapping[str, Any]) -> str:
    return str(xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest())


def _file_digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"{path.stat().st_size} {digest.hexdigest()}"
