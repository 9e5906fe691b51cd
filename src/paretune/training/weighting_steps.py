"""What a method of data weighting does in a step; `DataWeightingTrainer` does the rest."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


class WeightingSteps(ABC):
    """The steps on x, and the gradient for y's optimiser.

    A step is `begin`, `add` for each micro-batch, `finish`; then y's optimiser moves, and `moved`
    is told.
    """

    filled: Sequence[nn.Parameter] | None = None
    """Parameters to which `finish` writes gradients; None for all that are trained."""

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def add(self, inputs: Mapping[str, Any]) -> None:
        """A micro-batch, on the model's device."""

    @abstractmethod
    def finish(self) -> float | None:
        """Set y's gradient; the value of max_s p_s f_s, or None where the step is to be skipped."""

    @abstractmethod
    def moved(self) -> None:
        """y has taken the step."""

    @property
    @abstractmethod
    def cost(self) -> tuple[int, int]:
        """Tokens and passes of the step so far, in this process."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
