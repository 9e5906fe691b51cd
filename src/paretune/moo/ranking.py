"""Which of two runs for the same preference to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.moo.preference import Preference
from paretune.moo.shift import read_shift
from paretune.moo.solvers.descent import Descent
from paretune.moo.solvers.linear_scalarization import LinearScalarization
from paretune.moo.solvers.result import Method, Result
from paretune.moo.solvers.wc_augmented import WCAugmented
from paretune.moo.solvers.wc_penalty import WCPenalty
from paretune.moo.weightings import MGDA, Linear

# A point must be this much better than another, relatively, to take its place.
_MARGIN = 1e-6


@dataclass(frozen=True)
class Ranking:
    """Compares runs by what their method minimises: Σ p_m f_m for "linear", else max p_m f_m.

    Attributes:
        method: the method of the runs. For "mgda", where the preference has no say, no point is
            below another.
    """

    method: Method

    @property
    def by_preference(self) -> bool:
        """Whether the method goes by the preference at all."""
        return not (isinstance(self.method, Descent) and isinstance(self.method.weighting, MGDA))

    def better(self, preference: Preference, found: Result, kept: Result) -> bool:
        """Whether to keep `found`: converged comes first, then the lower value.

        Of two runs that both have not converged the one of smaller residual is better.
        """
        if found.converged and kept.converged:
            return self.below(preference, found, kept)
        if found.converged or kept.converged:
            return found.converged
        return found.kkt_residual < kept.kkt_residual

    def below(self, preference: Preference, found: Result, kept: Result) -> bool:
        """Whether the point of `found` is the better one for this preference."""
        own, other = self.values([preference], [kept, found])[0].tolist()
        return bool(self._lower(other, own))

    def lowest(self, preferences: Sequence[Preference], runs: Sequence[Result]) -> NDArray[np.intp]:
        """For each preference, of which there are as many as runs, the run whose point to take.

        One after the other the runs that converged are compared with what is best so far, which is
        at first the preference's own run.
        """
        table = self.values(preferences, runs)
        best, level = np.arange(len(runs)), table.diagonal().copy()
        for k, run in enumerate(runs):
            if run.converged:
                below = self._lower(table[:, k], level)
                best[below], level[below] = k, table[below, k]
        return best

    def values(
        self, preferences: Sequence[Preference], runs: Sequence[Result]
    ) -> NDArray[np.float64]:
        """What the method minimises for each preference, at the point of each run: ``(n, k)``."""
        method = self.method
        weights = np.array([preference.weights for preference in preferences])
        points = torch.stack([run.objectives for run in runs]).numpy()
        if isinstance(method, LinearScalarization) or (
            isinstance(method, Descent) and isinstance(method.weighting, Linear)
        ):
            sums: NDArray[np.float64] = weights @ points.T
            return sums
        shift = method.shift if isinstance(method, WCPenalty | WCAugmented) else None
        raised = points + np.array(read_shift(shift, weights.shape[1]))
        table = np.full((len(weights), len(raised)), -np.inf)
        for p, f in zip(weights.T, raised.T, strict=True):
            used = p > 0
            table[used] = np.maximum(table[used], np.multiply.outer(p[used], f))
        return table

    def _lower(self, found: Any, level: Any) -> Any:
        return (found < level - _MARGIN * np.abs(level)) & self.by_preference
