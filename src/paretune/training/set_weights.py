"""The weights of training sets: logits x, how they move, and what bounds them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paretune.errors import InputError

_BISECTIONS = 100
_LEAST = 1e-9  # of a weight: a logit is finite
_ROUNDED = 1e-3  # how far weights that were written with few digits may be from adding up to one


class SetWeights:
    """softmax(x) over the training sets, moved by an Adam of its own, in float64 on the CPU.

    Args:
        names: Of the N sets.
        rate: Adam's step.
        initial: Weight of each set at the start, adding up to one but for rounding; by default
            1/N.
        bounds: Least and largest weight of sets; others have none.
        entropy: What Σ w log w is weighed with beside what is minimised.

    Raises:
        InputError: a name that is no set's, or numbers that do not fit together.
    """

    def __init__(
        self,
        names: Sequence[str],
        rate: float,
        initial: Mapping[str, float] | None = None,
        bounds: Mapping[str, Sequence[float]] | None = None,
        entropy: float = 0.0,
    ) -> None:
        self.names, self._entropy = tuple(names), entropy
        start = self._by_name("initial_weights", initial, 1 / len(names))
        if not math.isclose(sum(start), 1.0, abs_tol=_ROUNDED) or min(start) < 0:
            raise InputError(
                "initial_weights must give each training set a weight of at least 0, adding up to "
                f"one, not {dict(initial or {})}."
            )
        limits = self._by_name("weight_bounds", bounds, (0.0, 1.0))
        low, high = ([float(pair[k]) for pair in limits] for k in (0, 1))
        if not all(0 <= a <= b <= 1 for a, b in zip(low, high, strict=True)) or not (
            sum(low) <= 1 <= sum(high)
        ):
            raise InputError(
                "weight_bounds must be pairs, least and largest weight, between 0 and 1, with a "
                f"sum of one between the two: {dict(bounds or {})}."
            )
        self._low, self._high = torch.tensor([low, high], dtype=torch.float64)
        self._bounded = bool(bounds)
        self.x = torch.tensor(start, dtype=torch.float64).clamp(min=_LEAST).log()
        """Logits, ``(N,)``."""
        self.x -= self.x.mean()
        self._optimizer = torch.optim.Adam([self.x], lr=rate)
        self._bound()

    def _by_name(self, what: str, given: Mapping[str, Any] | None, default: Any) -> list[Any]:
        for name in given or ():
            if name not in self.names:
                raise InputError(
                    f"{what} names {name!r}, which is no training set; they are "
                    f"{', '.join(self.names)}."
                )
        return [(given or {}).get(name, default) for name in self.names]

    @property
    def values(self) -> Tensor:
        """The weights, ``(N,)`` float64; they add up to one."""
        return self.x.softmax(0)

    def by_name(self) -> dict[str, float]:
        """The weights by set."""
        return dict(zip(self.names, self.values.tolist(), strict=True))

    def move(self, gradient: Tensor) -> None:
        """A step of Adam, then back within the bounds.

        Args:
            gradient: Of what is minimised by the logits, ``(N,)``.
        """
        gradient = gradient.to(self.x)
        if self._entropy:
            w, logs = self.values, self.x.log_softmax(0)
            gradient = gradient + self._entropy * w * (logs - w @ logs)
        self._step(gradient)

    def follow(self, slope: Tensor) -> None:
        """The same along the natural gradient of the simplex, as fast near its corners as inside.

        By the logits a weight near 0 or 1 has nearly no gradient, and could not come back.

        Args:
            slope: Derivatives of what is minimised by the weights themselves, ``(N,)``.
        """
        slope = slope.to(self.x)
        if self._entropy:
            slope = slope + self._entropy * self.x.log_softmax(0)
        self._step(slope - slope.mean())

    def _step(self, gradient: Tensor) -> None:
        self.x.grad = gradient
        self._optimizer.step()
        self._bound()

    def _bound(self) -> None:
        """The weights within the bounds that are nearest by Kullback-Leibler divergence."""
        if not self._bounded:
            return
        w = self.values
        low, high = -700.0, 700.0  # of the logarithm of a factor
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            total = float((w * math.exp(middle)).clamp(self._low, self._high).sum())
            low, high = (middle, high) if total < 1 else (low, middle)
        w = (w * math.exp(high)).clamp(self._low, self._high)
        self.x.copy_(w.clamp(min=_LEAST).log())

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"sets": list(self.names), "x": self.x.clone()}
        for name, value in self._optimizer.state[self.x].items():
            state[f"x_optimizer.{name}"] = value
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.x.copy_(state["x"])
        moments = {k.removeprefix("x_optimizer."): v for k, v in state.items() if "x_opt" in k}
        if moments:
            self._optimizer.state[self.x].update(moments)
