"""The engine a trainer holds: picks the way to the gradients and proves it on the first batch."""

import logging
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from paretune.errors import InputError
from paretune.gradients import per_objective
from paretune.gradients.bank import GradientBank
from paretune.gradients.objectives import Batch, loss_sums
from paretune.gradients.one_pass import NotPerSampleError, OnePass, unsupported_reason
from paretune.logprobs import sequence_logps
from paretune.losses import PreferenceLoss

Method = Literal["auto", "one_pass", "per_objective"]

logger = logging.getLogger(__name__)

# Largest relative difference from automatic differentiation on the first batch: rounding of the
# products, with room for layers whose gradients nearly cancel.
_LOOSEST = 0.1  # bfloat16 and quantised weights
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05}


class ObjectiveGradients:
    """Fills a `GradientBank` with the M gradients of a batch.

    Args:
        model: The policy; its trainable parameters are those that require gradients now.
        losses: Per objective, its loss.
        method: ``"one_pass"``, ``"per_objective"``, or ``"auto"``: one pass where it is exact.
            The first batch is compared with automatic differentiation; should an architecture mix
            samples, ``"auto"`` falls back with a warning and ``"one_pass"`` is an error.

    Raises:
        InputError: if there is nothing to train, or ``"one_pass"`` is asked for where it is not
            exact.
    """

    def __init__(
        self, model: nn.Module, losses: Mapping[str, PreferenceLoss], method: Method = "auto"
    ) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise InputError("The model has no trainable parameters: every one of them is frozen.")
        self.model, self.losses = model, dict(losses)
        self.bank = GradientBank(parameters, len(losses))
        obstacle = None if method == "per_objective" else unsupported_reason(model)
        if method == "one_pass" and obstacle is not None:
            raise InputError(
                f"gradients='one_pass' is not exact here: {obstacle}. Use gradients='auto'."
            )
        if method == "auto" and obstacle is not None:
            logger.info("One backward pass per objective: %s.", obstacle)
        use_one_pass = method != "per_objective" and obstacle is None
        self._one_pass = OnePass(model, self.bank) if use_one_pass else None
        self._unproven, self._asked = use_one_pass, method == "one_pass"
        self.passes = 0
        """Forward and backward passes so far, each counting as one."""

    @property
    def method(self) -> Method:
        """The way in use, ``"one_pass"`` or ``"per_objective"``."""
        return "per_objective" if self._one_pass is None else "one_pass"

    def accumulate(self, batch: Batch, scale: float = 1.0) -> None:
        """Add a micro-batch to the bank (see ``bank.zero``, ``bank.finish``).

        Args:
            scale: Loss scale of mixed precision; the bank's gradients are free of it.
        """
        if self._one_pass is not None and self._unproven:
            self._accumulate_and_prove(self._one_pass, batch, scale)
        elif self._one_pass is not None:
            self._one_pass.accumulate(batch, self.losses, scale)
            self.passes += 2
        else:
            self.passes += per_objective.accumulate(
                self.model, batch, self.losses, self.bank, scale
            )

    def _accumulate_and_prove(self, one_pass: OnePass, batch: Batch, scale: float) -> None:
        """Check the first micro-batch's gradients against autograd's, under the same dropout."""
        self._unproven = False
        self.passes += 4
        device = batch["input_ids"].device
        coefficients = torch.linspace(0.5, 1.0, len(self.losses), device=device)
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            sums, _ = loss_sums(sequence_logps(self.model, batch), batch, self.losses)
            expected = torch.autograd.grad(
                coefficients @ sums * scale, self.bank.parameters, allow_unused=True
            )
        del sums  # and with it the graph
        try:
            one_pass.accumulate(batch, self.losses, scale)
        except NotPerSampleError as obstacle:
            reason = str(obstacle)
        else:
            error = _relative_error(self.bank.blocks, expected, coefficients * scale)
            if error <= _tolerance(self.model, one_pass.dtype):
                return
            reason = f"the gradients differ from autograd's by {error:.1e} (relative)"
        self._fall_back(reason)
        self.bank.zero()
        self.accumulate(batch, scale)

    def _fall_back(self, reason: str) -> None:
        if self._asked:
            raise InputError(
                f"gradients='one_pass' is not exact here: {reason}. Use gradients='auto'."
            )
        logger.warning("Using one backward pass per objective, since in one pass %s.", reason)
        self._one_pass = None


def _relative_error(
    blocks: list[Tensor], expected: tuple[Tensor | None, ...], coefficients: Tensor
) -> float:
    difference = norm = 0.0
    for block, gradient in zip(blocks, expected, strict=True):
        found = torch.tensordot(coefficients.to(block.dtype), block, dims=1)
        exact = torch.zeros_like(found) if gradient is None else gradient.to(found.dtype)
        difference += float((found - exact).square().sum())
        norm += float(exact.square().sum())
    # Both zero: nothing to tell apart. Not finite: the step itself reports it.
    return (difference / norm) ** 0.5 if norm > 0 else float(difference > 0)


def _tolerance(model: nn.Module, layer_dtype: torch.dtype) -> float:
    dtypes = {parameter.dtype for parameter in model.parameters()} | {layer_dtype}
    return max(_TOLERANCE.get(dtype, _LOOSEST) for dtype in dtypes)
