"""Both levels of data weighting for a language model: weighted training sets, and criteria.

x are the logits of the sets' weights, y the trainable parameters. The lower level is
g(x, y) = Σ_n softmax(x)_n L_n(y) (+ ridge/2 ‖y‖²), the upper level F = (L_1(y), …, L_S(y)), where L
is the mean cross-entropy per token of a response (Appendix E.2 of the WC-Penalty paper, which sums
where these are means).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from paretune.errors import InputError
from paretune.moo.bilevel.module import ModuleVector
from paretune.moo.bilevel.problem import BatchTerm
from paretune.training.responses import Batches, Part, ResponseLoss

Join = Callable[[Tensor], Tensor]
"""The mean of a tensor over all processes, the same to the last bit on each."""


class LanguageModelObjectives:
    """The terms of a `StochasticBilevelProblem` on the trainable parameters of a language model.

    A batch of the problem is a `Batches`. Micro-batches are gone through one by one with y put in
    place of the parameters, so that memory is that of a plain gradient; this also is what goes
    with gradient checkpointing. Such losses have no second derivative in torch (products are
    finite differences).

    Args:
        model: A causal language model, PEFT-wrapped or not.
        in_place: Whether a single micro-batch is treated so, too. Otherwise y is an input of the
            model, and second derivatives and unrolled steps work, in the memory that they take.
        join: Means over processes; None for one process.

    Attributes:
        last: The value of each part when it was last looked at.
    """

    def __init__(self, model: nn.Module, in_place: bool, join: Join | None = None) -> None:
        self.last: dict[Part, float] = {}
        self._loss, self._join = ResponseLoss(model), join
        self._functional = None if in_place else ModuleVector(self._loss)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if not self._parameters:
            raise InputError(
                "The model has no trainable parameter: give a peft_config, or a model whose "
                "parameters require gradients."
            )

    # ------------------------------------------------------------------ y

    def vector(self) -> Tensor:
        """A copy of the parameters as float32, flat."""
        return torch.cat([p.detach().float().flatten() for p in self._parameters])

    def load(self, y: Tensor) -> None:
        """Put y in place of the parameters."""
        with torch.no_grad():
            for parameter, piece in zip(self._parameters, self._split(y), strict=True):
                parameter.copy_(piece)

    def set_gradient(self, gradient: Tensor) -> None:
        """Give the parameters their part of a flat gradient."""
        for parameter, piece in zip(self._parameters, self._split(gradient), strict=True):
            parameter.grad = piece.to(parameter.dtype)

    def _split(self, y: Tensor) -> list[Tensor]:
        pieces = y.detach().split([p.numel() for p in self._parameters])
        return [
            piece.view_as(p).to(p.device) for piece, p in zip(pieces, self._parameters, strict=True)
        ]

    # ------------------------------------------------------------------ terms

    def upper(self, criteria: Sequence[str]) -> list[BatchTerm]:
        """One term for each criterion."""
        return [self._criterion(Part("criterion", name)) for name in criteria]

    def lower(self, sets: Sequence[str], ridge: float = 0.0) -> list[BatchTerm]:
        """One term for each training set, and one for the ridge, if any."""
        terms = [self._set(Part("set", name), n) for n, name in enumerate(sets)]
        if ridge > 0:
            terms.append(lambda x, y, batch: ridge / 2 * y.square().sum())
        return terms

    def _criterion(self, part: Part) -> BatchTerm:
        return lambda x, y, batch: self.loss(part, y, batch)

    def _set(self, part: Part, n: int) -> BatchTerm:
        def term(x: Tensor, y: Tensor, batch: Batches) -> Tensor:
            loss = self.loss(part, y, batch)
            return x.softmax(0)[n].to(loss) * loss

        return term

    def loss(self, part: Part, y: Tensor, batch: Batches) -> Tensor:
        """The mean loss of a part at y, over the batches of all processes."""
        if self._join is not None:
            y = _apply(_Spread, y, self._join)
        draws = [draw[part] for draw in batch.draws if part in draw]
        if self._functional is not None and len(draws) == 1:
            value: Tensor = self._functional.call(y, draws[0]).sum() / batch.rows[part]
        elif torch.is_grad_enabled() and y.requires_grad:
            value = _apply(_InPlace, y, self, draws, batch.rows[part])
        else:
            value = self.in_place(y, draws, batch.rows[part])[0]
        if self._join is not None:
            value = _apply(_Joined, value, self._join)
        self.last[part] = float(value.detach())
        return value

    def in_place(
        self, y: Tensor, draws: Sequence[Any], rows: float, gradient: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The sum of losses / `rows` with the parameters set to y, and its gradient if asked for.

        The parameters stay at y.
        """
        self.load(y)
        total = y.new_zeros(())
        sums = [torch.zeros_like(p) for p in self._parameters] if gradient else []
        for draw in draws:
            with torch.set_grad_enabled(gradient):
                value = self._loss(draw).sum() / rows
            total += value.detach().to(total)
            if gradient:
                for held, new in zip(
                    sums,
                    torch.autograd.grad(value, self._parameters, materialize_grads=True),
                    strict=True,
                ):
                    held.add_(new)
        return total, torch.cat([held.to(y).flatten() for held in sums]) if gradient else None


def _apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    result: Tensor = function.apply(*args)
    return result


class _InPlace(torch.autograd.Function):
    """`LanguageModelObjectives.in_place` as a function of y, whose gradient is found on the way."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, levels: Any, draws: Any, rows: float) -> Any:
        value, gradient = levels.in_place(y, draws, rows, gradient=True)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None, None, None


class _Joined(torch.autograd.Function):
    """The mean over processes, in front of computations that are the same on all of them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, join: Join) -> Tensor:
        ctx.join = join
        return join(value)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        return _apply(_Spread, outer, ctx.join), None


class _Spread(torch.autograd.Function):
    """What is the same on all processes, in front of computations that are each one's own."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, join: Join) -> Tensor:
        ctx.join = join
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        return _apply(_Joined, outer, ctx.join), None
