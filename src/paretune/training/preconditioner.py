"""How an optimiser turns gradients into movement, coordinate by coordinate."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_SQUARES = ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum")
"""Names of what torch's optimisers take the root of (of AMSGrad's two the first)."""


class Preconditioner:
    """P of the step that an optimiser has just taken, a diagonal: Δy = −P g, momentum aside.

    With Adam, AdamW, NAdam, RAdam and RMSprop it is η/(√v̂ + ε) with v̂ as it is after the step,
    with Adagrad the same of its sums, with SGD η. v̂ is held fixed: a gradient's lasting share of
    the movement, which momentum spreads over the steps to come, is P times it. Learning rates η
    are relative to the largest of all parameter groups. Of other optimisers P is η, which is told.

    Args:
        optimizer: A torch optimiser, or accelerate's wrapper of one.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = getattr(optimizer, "optimizer", optimizer)
        self._told = False

    @property
    def rate(self) -> float:
        """The largest learning rate; where it is 0 nothing moved."""
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    @torch.no_grad()
    def of(self, parameters: Sequence[nn.Parameter]) -> Iterator[Tensor | float]:
        """P of each parameter, in its shape in float32, or one number for all of it."""
        groups = {id(p): group for group in self._optimizer.param_groups for p in group["params"]}
        largest = self.rate
        for parameter in parameters:
            group = groups[id(parameter)]
            yield self._of(parameter, group, float(group["lr"]) / largest)

    def _of(self, parameter: nn.Parameter, group: Any, rate: float) -> Tensor | float:
        state = self._optimizer.state[parameter]
        if isinstance(self._optimizer, torch.optim.SGD) or not state:
            return rate
        known = (state[name] for name in _SQUARES if name in state)
        squares = next(known, None)
        if not isinstance(squares, Tensor) or squares.shape != parameter.shape:
            if not self._told:
                logger.warning(
                    "What %s divides gradients by is not known: the sets' weights move as if it "
                    "were SGD.",
                    type(self._optimizer).__name__,
                )
                self._told = True
            return rate
        squares = squares.float()
        if "exp_avg_sq" in state:
            squares = squares / (1 - float(group["betas"][1]) ** float(state["step"]))
        return rate / (squares.sqrt() + float(group["eps"]))
