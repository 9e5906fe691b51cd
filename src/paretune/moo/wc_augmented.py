"""The default method for constrained problems: an augmented Lagrangian with exact elimination."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from paretune.moo.preference import Preference
from paretune.moo.problem import Problem
from paretune.moo.result import Result
from paretune.moo.wc_checks import Shift


@dataclass(frozen=True)
class WCAugmented:
    """Being written."""

    shift: Shift = None

    def run(
        self, problem: Problem, preference: Preference, x0: Tensor, steps: int, tol: float
    ) -> Result:
        raise NotImplementedError
