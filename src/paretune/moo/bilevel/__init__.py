"""Multi-objective bilevel problems: min over x of F(x, y), y a minimiser of g(x, ·)."""

from paretune.moo.bilevel.equality import EqualityConstrained
from paretune.moo.bilevel.forum import FORUM
from paretune.moo.bilevel.gmoba import GMOBA
from paretune.moo.bilevel.itd import ITD
from paretune.moo.bilevel.method import BilevelMethod, Iterate
from paretune.moo.bilevel.moco import MoCo
from paretune.moo.bilevel.module import ModuleVector
from paretune.moo.bilevel.moml import MOML
from paretune.moo.bilevel.oracle import NonConvexLowerLevelWarning, Oracle
from paretune.moo.bilevel.polish import Polished, polish_lower
from paretune.moo.bilevel.problem import BilevelProblem, StochasticBilevelProblem
from paretune.moo.bilevel.result import BilevelHistory, BilevelResult, Record
from paretune.moo.bilevel.soba import SOBA
from paretune.moo.bilevel.stochastic_wc_augmented import StochasticWCAugmented
from paretune.moo.bilevel.wc_soba import WCSOBA
from paretune.moo.solvers.multipliers import StepwiseMultipliers

__all__ = [
    "FORUM",
    "GMOBA",
    "ITD",
    "MOML",
    "SOBA",
    "WCSOBA",
    "BilevelHistory",
    "BilevelMethod",
    "BilevelProblem",
    "BilevelResult",
    "EqualityConstrained",
    "Iterate",
    "MoCo",
    "ModuleVector",
    "NonConvexLowerLevelWarning",
    "Oracle",
    "Polished",
    "Record",
    "StepwiseMultipliers",
    "StochasticBilevelProblem",
    "StochasticWCAugmented",
    "polish_lower",
]
