"""Problems whose Pareto fronts and weighted-Chebyshev solutions are known.

Each docstring names its source. `Problem`s without constraints
suit every method of `minimize`, those with constraints the methods of the second paper.
"""

from paretune.moo.test_problems.constrained import (
    dd1,
    random_quadratics,
    rank_deficient,
    sphere_arc,
    toy,
)
from paretune.moo.test_problems.eq_dtlz import eq_dtlz
from paretune.moo.test_problems.known import KnownProblem
from paretune.moo.test_problems.unconstrained import (
    convex_pair,
    fonseca_fleming,
    sphere3,
    zdt2_smooth,
)

__all__ = [
    "KnownProblem",
    "convex_pair",
    "dd1",
    "eq_dtlz",
    "fonseca_fleming",
    "random_quadratics",
    "rank_deficient",
    "sphere3",
    "sphere_arc",
    "toy",
    "zdt2_smooth",
]
