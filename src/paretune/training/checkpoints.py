"""Checkpoints that a kill at any moment cannot spoil."""

import json
import os
import re
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from paretune.errors import InputError

_MARK = "paretune_state.json"  # written last: a checkpoint without it is incomplete


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...


class CompleteCheckpoints(TrainerCallback):
    """Writes the owner's state into each checkpoint once all else is there."""

    def __init__(self, owner: _Stateful) -> None:
        self._owner = owner

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not args.should_save:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        partial = folder / f"{_MARK}.partial"
        partial.write_text(json.dumps(self._owner.state_dict()))
        os.replace(partial, folder / _MARK)


def read_state(checkpoint: str) -> dict[str, Any]:
    """The owner's state in a complete checkpoint.

    Raises:
        InputError: if the checkpoint is incomplete or was written by another trainer.
    """
    path = Path(checkpoint) / _MARK
    if not path.exists():
        raise InputError(
            f"{checkpoint} is not a complete checkpoint of this trainer ({_MARK} is missing): "
            "resume from another one."
        )
    state: dict[str, Any] = json.loads(path.read_text())
    return state


def newest_complete(folder: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint in a folder that was written to its end; None if there is none."""
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if number and (path / _MARK).exists():
            found.append((int(number[1]), path))
    return str(max(found)[1]) if found else None
