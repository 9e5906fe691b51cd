"""MGDA: the minimum-norm combination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paretune.moo.numerics.simplex_qp import solve_simplex_qp
from paretune.moo.weightings.base import ActiveObjectives, Weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MGDA:
    """The minimum-norm combination (Désidéri, 2012): argmin over the simplex of ‖Gλ‖².

    The preference only says which objectives take part.
    """

    def __call__(
        self, gramian: Tensor, losses: Tensor, preference: Tensor | Sequence[float]
    ) -> Weights:
        active = ActiveObjectives.read(gramian, losses, preference)
        lam, gap, _ = solve_simplex_qp(active.gramian, [0.0] * len(active.indices))
        return active.weights(lam=lam, weights=lam, gap=gap)
