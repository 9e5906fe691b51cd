"""Which of two runs for the same preference to keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
        if not self.by_preference:
            return False
        level = self._value(preference, kept.objectives)
        return self._value(preference, found.objectives) < level - _MARGIN * abs(level)

    def _value(self, preference: Preference, objectives: Tensor) -> float:
        method = self.method
        weights = torch.tensor(preference.weights, dtype=torch.float64)
        if isinstance(method, LinearScalarization) or (
            isinstance(method, Descent) and isinstance(method.weighting, Linear)
        ):
            return float(weights @ objectives)
        shift = method.shift if isinstance(method, WCPenalty | WCAugmented) else None
        raised = objectives + torch.tensor(read_shift(shift, len(weights)), dtype=torch.float64)
        return float((weights * raised)[weights > 0].max())
