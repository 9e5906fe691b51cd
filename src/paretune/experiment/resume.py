"""Running another library's `transformers.Trainer` to its end, however often it is cut short."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import Trainer

from paretune.errors import InputError, TrainingStoppedError, UntrainedError
from paretune.experiment.ground import rows_digest
from paretune.experiment.weights import load_weights
from paretune.models.products import fast_products
from paretune.training.arguments import REFUSED, lasting
from paretune.training.base import adapter_settings
from paretune.training.callbacks import weight_sums
from paretune.training.checkpoints import (
    CompleteCheckpoints,
    difference,
    finished_state,
    newest_complete,
    read_state,
)
from paretune.training.reference_cache import model_digest


class Clock:
    """Seconds of training over all sessions; `train_to_end` has checkpoints keep them."""

    def __init__(self) -> None:
        self.earlier = 0.0
        self._start = time.monotonic()

    def seconds(self) -> float:
        return self.earlier + time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.earlier = state["seconds"]


@fast_products()
def train_to_end(
    trainer: Trainer, owner: Any, rows: Dataset, more: Mapping[str, Any] | None = None
) -> None:
    """Train from the newest complete checkpoint on, if there is one.

    Args:
        owner: Its ``state_dict`` is kept in checkpoints; ``load_state_dict`` gets it back.
        rows: What is trained on.
        more: What else a checkpoint must share with the run that is resumed from it, as JSON.

    Raises:
        InputError: the checkpoint is of another model, other data or other arguments.
        TrainingStoppedError: no weight changed, or one is not finite.
    """
    model: Any = trainer.model
    identity = {
        "trainer": type(trainer).__name__,
        **(more or {}),
        "arguments": _arguments(trainer.args),
        "adapter": {
            name: adapter_settings(config)
            for name, config in getattr(model, "peft_config", {}).items()
        },
        "model": model_digest(model),
        "training data": rows_digest(rows),
    }
    trainer.add_callback(CompleteCheckpoints(_Owned(owner, identity)))
    fresh = weight_sums(model)
    checkpoint = newest_complete(str(trainer.args.output_dir))
    state = None
    if checkpoint is not None:
        saved = read_state(checkpoint)
        check_identity(checkpoint, saved.get("identity"), identity)
        owner.load_state_dict(saved)
        state = finished_state(checkpoint, trainer.args)
    if checkpoint is not None and state is not None:
        # After the last step transformers would take one more.
        best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
        load_weights(model, Path(best or checkpoint))
        trainer.state = state
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    check_trained(model, fresh, trainer.state.global_step)


def check_identity(checkpoint: str | Path, known: Any, identity: Mapping[str, Any]) -> None:
    """See that a checkpoint is of the training that is to be resumed.

    Args:
        known: The identity it was written with; None in a checkpoint of 0.1.

    Raises:
        InputError: it is of another one, and what differs.
    """
    if known is not None and (other := difference(known, identity)):
        raise InputError(
            f"The checkpoint '{checkpoint}' is of another training: {other}. Give the same again, "
            f"or delete the folder '{Path(checkpoint).parent}' to train anew."
        )


def check_trained(model: nn.Module, before: list[float], steps: int) -> None:
    """See that training changed weights, and that they are finite.

    Args:
        before: `~paretune.training.callbacks.weight_sums` before the first step.

    Raises:
        TrainingStoppedError: it did not, or they are not.
    """
    after = weight_sums(model)
    if not all(map(math.isfinite, after)):
        raise TrainingStoppedError(
            f"After {steps} steps a weight is NaN or infinite: lower the learning rate."
        )
    if after == before:
        raise UntrainedError(
            f"No weight changed in {steps} steps: the gradient was zero, or the learning rate is "
            "too small for the weights' dtype."
        )


class _Owned:
    """The owner's state with the identity of its training, for checkpoints."""

    def __init__(self, owner: Any, identity: Mapping[str, Any]) -> None:
        self._owner, self._identity = owner, identity

    def state_dict(self) -> dict[str, Any]:
        return {**self._owner.state_dict(), "identity": self._identity}


def _arguments(args: Any) -> dict[str, Any]:
    """Those that decide on the steps; other trainers heed what ours refuse."""
    whole = args.to_dict()
    heeded = {name: whole[name] for name in REFUSED if name in whole and "hub" not in name}
    found: dict[str, Any] = json.loads(json.dumps({**lasting(args), **heeded}, default=str))
    return found
