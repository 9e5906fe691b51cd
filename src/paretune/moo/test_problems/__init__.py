"""Problems whose Pareto fronts and weighted-Chebyshev solutions are known.

Each docstring names its source. `Problem`s without constraints suit every method of `minimize`,
those with constraints the methods of the second paper, bilevel ones its bilevel methods.
"""

from paretune.moo.test_problems.bilevel import (
    KnownBilevel,
    QuadraticBilevel,
    data_weighting,
    quadratic_bilevel,
    rank_deficient_bilevel,
)
from paretune.moo.test_problems.classic import bnh, dtlz2, osy, tnk, zdt1, zdt2
from paretune.moo.test_problems.constrained import (
    dd1,
    random_quadratics,
    rank_deficient,
    sphere_arc,
    toy,
)
from paretune.moo.test_problems.eq_dtlz import eq_dtlz
from paretune.moo.test_problems.reference import KnownProblem
from paretune.moo.test_problems.unconstrained import (
    convex_pair,
    fonseca_fleming,
    sphere3,
    zdt2_smooth,
)

__all__ = [
    "KnownBilevel",
    "KnownProblem",
    "QuadraticBilevel",
    "bnh",
    "convex_pair",
    "data_weighting",
    "dd1",
    "dtlz2",
    "eq_dtlz",
    "fonseca_fleming",
    "osy",
    "quadratic_bilevel",
    "random_quadratics",
    "rank_deficient",
    "rank_deficient_bilevel",
    "sphere3",
    "sphere_arc",
    "tnk",
    "toy",
    "zdt1",
    "zdt2",
    "zdt2_smooth",
]
