"""The engine a trainer holds: picks the way to the gradients and proves it on the first batch."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paretune.errors import InputError
from paretune.gradients import per_objective
from paretune.gradients.bank import GradientBank
from paretune.gradients.layerwise import LayerwiseGradients, layerwise_obstacle
from paretune.gradients.objectives import Batch, loss_sums, parts_of, shortest_rows
from paretune.gradients.one_pass import NotPerSampleError, OnePass, unsupported_reason
from paretune.logprobs import Packing, sequence_logps
from paretune.logprobs.packing import failure, fingerprint
from paretune.losses import PreferenceLoss
from paretune.models import is_sharded
from paretune.models.products import fast_products

Method = Literal["auto", "one_pass", "per_objective", "layerwise"]

logger = logging.getLogger(__name__)

# Largest relative difference from automatic differentiation on the first batch: rounding of the
# products, with room for layers whose gradients nearly cancel.
_LOOSEST = 0.1  # bfloat16 and quantised weights
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05}

_ROWS = 2  # of a batch, that are compared

_proven: set[str] = set()
"""Fingerprints of what was proven exact in this process."""


class ObjectiveGradients:
    """Fills a `GradientBank` with the M gradients of a batch.

    Args:
        model: The policy; its trainable parameters are those that require gradients now.
        losses: Per objective, its loss.
        method: ``"one_pass"``, ``"per_objective"``, or ``"auto"``: one pass where it is exact.
            Two rows of the first batch are compared with automatic differentiation of the padded
            rows, once for each kind of model in a process; should an architecture mix samples,
            ``"auto"`` falls back with a warning and ``"one_pass"`` is an error. Where all weights
            are trained, ``"auto"`` is ``"layerwise"``, without a bank, if `single` allows it.
        packing: The model's; by default packed where that is exact.
        single: Whether each step is one call of `accumulate`, and of the gradients needs the
            Gramian and a combination alone.
        bank: One to fill; by default a new one.

    Raises:
        InputError: if there is nothing to train, or a method is asked for where it is not exact.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Mapping[str, PreferenceLoss],
        method: Method = "auto",
        packing: Packing | None = None,
        single: bool = False,
        bank: GradientBank | None = None,
    ) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise InputError("The model has no trainable parameters: every one of them is frozen.")
        self.model, self.losses = model, dict(losses)
        self.packing = Packing(model) if packing is None else packing
        self._one_pass: OnePass | None = None
        self.bank: GradientBank | LayerwiseGradients
        self._asked = method
        if method == "layerwise" or (method == "auto" and self._is_full and len(losses) > 1):
            obstacle = layerwise_obstacle(model)
            if obstacle is None and not single:
                obstacle = "a step may need them one by one, or has several micro-batches"
            if obstacle is None:
                method, self.bank = "layerwise", LayerwiseGradients(model, parameters, len(losses))
            elif method == "layerwise":
                raise InputError(
                    f"gradients='layerwise' is not possible here: {obstacle}. Use gradients='auto'."
                )
            else:
                size = 4 * len(losses) * sum(p.numel() for p in parameters) / 2**30
                logger.warning(
                    "The gradients of %d objectives take %.1f GiB beside the model, since %s.",
                    len(losses),
                    size,
                    obstacle,
                )
        if method != "layerwise":
            bank = self.bank = GradientBank(parameters, len(losses)) if bank is None else bank
            obstacle = None if method == "per_objective" else unsupported_reason(model)
            if method == "one_pass" and obstacle is not None:
                raise InputError(
                    f"gradients='one_pass' is not exact here: {obstacle}. Use gradients='auto'."
                )
            if method == "auto" and obstacle is not None:
                logger.info("One backward pass per objective: %s.", obstacle)
            if method != "per_objective" and obstacle is None:
                self._one_pass = OnePass(model, bank)
        self.before: Callable[[Batch], None] | None = None
        """Called with what the model is to run next, a batch or some rows of one; for models that
        treat each sequence by its row."""
        self._proven: set[tuple[bool, Method]] = {(False, "per_objective")}
        self.passes = 0
        """Forward and backward passes so far, each counting as one, without the proof's."""

    @property
    def method(self) -> Method:
        """The way in use, ``"one_pass"``, ``"per_objective"`` or ``"layerwise"``."""
        if isinstance(self.bank, LayerwiseGradients):
            return "layerwise"
        return "per_objective" if self._one_pass is None else "one_pass"

    @property
    def _is_full(self) -> bool:
        return getattr(self.model, "peft_config", None) is None

    def parts(self, batch: Batch, tokens: int | None) -> Sequence[Batch]:
        """A micro-batch in parts of at most so many tokens, to accumulate one after another.

        Processes of a sharded model, which run their passes together, get as many parts each.
        """
        if tokens is None:
            return [batch]
        batch = self.packing.apply(batch)
        parts = parts_of(batch, tokens)
        if is_sharded(self.model):
            most = torch.tensor(len(parts), device=batch["input_ids"].device)
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
            parts = parts_of(batch, tokens, int(most))
        return parts

    @fast_products()
    def accumulate(self, batch: Batch, scale: float = 1.0) -> None:
        """Add a micro-batch to the bank (see ``bank.zero``, ``bank.finish``).

        Args:
            scale: Loss scale of mixed precision; the bank's gradients are free of it.
        """
        batch = self.packing.apply(batch)
        while ("packed" in batch, self.method) not in self._proven and self._falls_back(
            batch, scale
        ):
            batch = self.packing.apply(batch)
        self._tell(batch)
        self._accumulate(batch, scale)

    def _tell(self, batch: Batch) -> None:
        if self.before is not None:
            self.before(batch)

    def _accumulate(self, batch: Batch, scale: float) -> None:
        if isinstance(self.bank, LayerwiseGradients):
            self.passes += self.bank.accumulate(batch, self.losses, scale)
        elif self._one_pass is not None:
            self._one_pass.accumulate(batch, self.losses, scale)
            self.passes += 2
        else:
            self.passes += per_objective.accumulate(
                self.model, batch, self.losses, self.bank, scale
            )

    def _falls_back(self, batch: Batch, scale: float) -> bool:
        """Compare the way in use with autograd on a few rows; leave it if they differ.

        Raises:
            InputError: they differ, and nothing else is allowed.
        """
        way = ("packed" in batch, self.method)
        key = f"{way} {fingerprint(self.model)}"
        if key not in _proven:
            # Where sequences belong to rows and the model cannot be told of others, all stay.
            told = "row" not in batch or self.before is not None
            rows = shortest_rows(batch, _ROWS) if told else batch
            self._tell(rows)
            held, passes = self.bank.hold(), self.passes
            device = batch["input_ids"].device
            with (
                torch.random.fork_rng([] if device.type == "cpu" else [device]),
                _without_dropout(self.model),
            ):
                found = self._compare(rows, scale)
                reason = self._fault(found)
                packs = reason is None or (way[0] and self._packs_alone(rows, scale))
            self.bank.restore(held)
            self.passes = passes
            if isinstance(found, float) and math.isnan(found):
                return False  # the step itself reports it; the next batch may tell
            if reason is not None:
                if way[0] and not packs:
                    self.packing.give_up(reason)
                else:
                    self._fall_back(reason)
                return True
            _proven.add(key)
        self._proven.add(way)
        return False

    def _packs_alone(self, batch: Batch, scale: float) -> bool:
        """Whether packing is exact with one backward pass per objective; if not it is at fault."""
        if isinstance(self.bank, LayerwiseGradients):  # the other way about: no bank is made
            padded = {name: value for name, value in batch.items() if name != "packed"}
            return self._fault(self._compare(padded, scale)) is not None
        if self._one_pass is None:
            return False
        held, self._one_pass = self._one_pass, None
        try:
            return self._fault(self._compare(batch, scale)) is None
        finally:
            self._one_pass = held

    def _fault(self, found: float | str) -> str | None:
        """What is wrong by a comparison; None if nothing is."""
        if isinstance(found, str):
            return found
        dtype = torch.float32 if self._one_pass is None else self._one_pass.dtype
        if not found > _tolerance(self.model, dtype):
            return None
        return f"the gradients differ from autograd's by {found:.1e} (relative)"

    def _compare(self, batch: Batch, scale: float) -> float | str:
        """As `_difference`, of all processes where they must go the same way."""
        found = self._difference(batch, scale)
        return _worst(found) if is_sharded(self.model) else found

    def _difference(self, batch: Batch, scale: float) -> float | str:
        """How the way in use differs from autograd of the padded batch, relative; or why it fails.

        NaN where the gradients are not finite.
        """
        self.bank.zero()
        if isinstance(self.bank, LayerwiseGradients):
            return self._layerwise_difference(self.bank, batch, scale)
        if "packed" in batch:
            if (reason := failure(lambda: self._accumulate(batch, scale))) is not None:
                return reason
        else:
            try:
                self._accumulate(batch, scale)
            except NotPerSampleError as obstacle:
                return str(obstacle)
        sums, _ = loss_sums(sequence_logps(self.model, batch), batch, self.losses)
        difference = norm = 0.0
        for m, value in enumerate(sums):
            gradients: Sequence[Tensor | None] = torch.autograd.grad(
                value * scale,
                self.bank.parameters,
                retain_graph=m < len(sums) - 1,
                allow_unused=True,
            )
            for block, gradient in zip(self.bank.blocks, gradients, strict=True):
                if gradient is None:
                    difference += float(block[m].square().sum())
                    continue
                exact = gradient.to(block.dtype) / scale
                difference += float((block[m] - exact).square().sum())
                norm += float(exact.square().sum())
        if not math.isfinite(norm):
            return math.nan
        # Both zero: nothing to tell apart.
        return (difference / norm) ** 0.5 if norm > 0 else float(difference > 0)

    def _layerwise_difference(
        self, bank: LayerwiseGradients, batch: Batch, scale: float
    ) -> float | str:
        """The same by lengths of gradients alone, of which one is in memory at a time."""
        weights = torch.arange(1.0, len(self.losses) + 1, dtype=torch.float64)

        def run() -> None:
            self._accumulate(batch, scale)
            bank.finish()
            bank.combine(weights)

        if (reason := failure(run)) is not None:
            return reason
        found = torch.tensor([float(p.grad.norm()) for p in bank.parameters if p.grad is not None])
        self.model.zero_grad(set_to_none=True)
        gramian = bank.gramian()
        sums, totals = loss_sums(sequence_logps(self.model, batch), batch, self.losses)
        means = sums / torch.where(totals == 0, 1, totals)

        def lengths(value: Tensor) -> Tensor:
            given = torch.autograd.grad(
                value, bank.parameters, retain_graph=True, allow_unused=True
            )
            return torch.tensor([0.0 if g is None else float(g.norm()) for g in given])

        alone = torch.stack([lengths(value).norm() for value in means]).double()
        exact = lengths((weights.to(means) * means).sum())
        size = float(weights @ alone)
        if not math.isfinite(size):
            return math.nan
        if size == 0:
            return float(found.any())
        errors = (
            (gramian.diagonal().sqrt() - alone).abs().max() / alone.max(),
            (weights @ gramian @ weights - exact.double().square().sum()).abs() / size**2,
            (found - exact).norm() / size,
        )
        return max(map(float, errors))

    def _fall_back(self, reason: str) -> None:
        if self._asked in ("one_pass", "layerwise"):
            raise InputError(
                f"gradients={self._asked!r} is not exact here: {reason}. Use gradients='auto'."
            )
        way = "layer by layer" if self.method == "layerwise" else "in one pass"
        logger.warning("Using one backward pass per objective, since %s %s.", way, reason)
        self._one_pass = None
        if isinstance(self.bank, LayerwiseGradients):
            self.bank = GradientBank(self.bank.parameters, len(self.losses))


def _worst(found: float | str) -> float | str:
    """Of what the processes found: those of a sharded model must go the same way."""
    every: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, found)
    reasons = [each for each in every if isinstance(each, str)]
    return reasons[0] if reasons else max(every, key=lambda error: (math.isnan(error), error))


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Within, a model in training drops nothing: rows and packed rows would drop other units."""
    modules = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _tolerance(model: nn.Module, layer_dtype: torch.dtype) -> float:
    dtypes = {parameter.dtype for parameter in model.parameters()} | {layer_dtype}
    return max(_TOLERANCE.get(dtype, _LOOSEST) for dtype in dtypes)
