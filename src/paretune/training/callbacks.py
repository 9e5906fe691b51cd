"""What the trainers do beside their steps: epochs of rows, and whether steps move the weights."""

import time
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerState

from paretune.errors import TrainingStoppedError
from paretune.training.checks import check_ownership
from paretune.training.totals import Totals

_PATIENT_STEPS = 20
"""Steps, after warm-up, in which weights narrower than float32 may round every change away."""


class EpochRows(Protocol):
    """Training rows that are drawn anew in each epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Any: ...

    def set_epoch(self, epoch: int) -> None: ...


class SharedEpoch(Dataset[Any]):
    """Rows whose epoch reaches the worker processes, also those that live through all epochs."""

    def __init__(self, rows: EpochRows) -> None:
        self.rows = rows
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self._drawn = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        epoch = int(self._epoch)
        if epoch != self._drawn:
            self.rows.set_epoch(epoch)
            self._drawn = epoch
        return self.rows[row]


class Epochs(TrainerCallback):
    """Tells the rows their epoch: accelerate does not with several processes or after a resume."""

    def __init__(self, rows: SharedEpoch) -> None:
        self._rows = rows

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._rows.set_epoch(int(state.epoch or 0))


class _Counting(Protocol):
    totals: Totals

    def unmoved_error(self) -> TrainingStoppedError: ...


class Movement(TrainerCallback):
    """Sees that steps can change the weights, and whether they do, until one did.

    Args:
        trainer: Its `totals` are told.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer: Any = trainer
        self._counting: _Counting = trainer
        self._before: list[float] | None = None
        self._seen = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer
        check_ownership(trainer.model, trainer.optimizer, trainer.filled_parameters)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        totals = self._counting.totals
        taken = totals.steps > self._seen
        self._seen = totals.steps
        rate = max(group["lr"] for group in self._trainer.optimizer.param_groups)
        look = taken and not totals.moved and rate > 0 and self._has_gradient()
        self._before = weight_sums(self._trainer.model) if look else None

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        totals = self._counting.totals
        if self._before is None or self._trainer.accelerator.optimizer_step_was_skipped:
            return
        totals.moved = self._before != weight_sums(self._trainer.model)
        totals.unmoved += not totals.moved
        if totals.moved:
            return
        warm = state.global_step >= args.get_warmup_steps(state.max_steps)
        if not self._narrow() or (warm and totals.unmoved >= _PATIENT_STEPS):
            raise self._counting.unmoved_error()

    def _narrow(self) -> bool:
        trained = (p for p in self._trainer.model.parameters() if p.requires_grad)
        return any(p.dtype.itemsize < torch.float32.itemsize for p in trained)

    def _has_gradient(self) -> bool:
        """Opposed objectives may leave none: that is a stationary point, not a fault."""
        gradients = (p.grad for p in self._trainer.model.parameters() if p.grad is not None)
        return any(bool(gradient.any()) for gradient in gradients)


class Times(TrainerCallback):
    """Adds up the wall-clock time of steps, of validation, and of putting batches together.

    A step is its passes, the weighting and the optimiser. Writing checkpoints counts as nothing.

    Args:
        trainer: Its `totals` are told.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer: Any = trainer
        self._mark: float | None = None

    def _lap(self, kind: str | None = None) -> None:
        if self._mark is None:  # not within a training
            return
        now = time.perf_counter()
        if kind is not None:
            times = self._trainer.totals.times
            times[kind] = times.get(kind, 0.0) + now - self._mark
        self._mark = now

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._mark = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._lap("loading")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._lap("step")

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._lap("validation")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._lap()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._mark = None


def weight_sums(model: nn.Module) -> list[float]:
    """Sums over each trained tensor: one of the two changes where an element does."""
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    # MPS has no float64.
    dtype = torch.float32 if trained[0].device.type == "mps" else torch.float64
    return [
        float(value)
        for p in trained
        for value in (p.sum(dtype=dtype), torch.linalg.vector_norm(p, dtype=dtype))
    ]
