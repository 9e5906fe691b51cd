"""Linear scalarisation, the preference-weighted gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paretune.moo.weightings.base import ActiveObjectives, Weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """Linear scalarisation, weights p: the papers' preference-weighted gradient (PWG)."""

    def __call__(
        self, gramian: Tensor, losses: Tensor, preference: Tensor | Sequence[float]
    ) -> Weights:
        active = ActiveObjectives.read(gramian, losses, preference)
        p = active.preference
        return active.weights(lam=p, weights=p, gap=0.0)
