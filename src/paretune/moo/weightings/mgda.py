"""MGDA: the minimum-norm combination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from paretune.moo.numerics.simplex_qp import solve_simplex_qp
from paretune.moo.weightings.base import Live, Weights


@dataclass(frozen=True)
class MGDA:
    """The minimum-norm combination (Désidéri, 2012): argmin over the simplex of ‖Gλ‖².

    The preference only says which objectives take part.
    """

    def __call__(
        self, gramian: Tensor, losses: Tensor, preference: Tensor | Sequence[float]
    ) -> Weights:
        live = Live.read(gramian, losses, preference)
        lam, gap, _ = solve_simplex_qp(live.gramian, [0.0] * len(live.indices))
        return live.weights(lam=lam, weights=lam, gap=gap)
