"""Multi-objective bilevel problems: min over x of F(x, y), y a minimiser of g(x, ·).

A new method is a `BilevelMethod` in a file of its own, its fields the options, and a line in
`METHODS`. Names load on first use, so that a recipe can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paretune.moo.bilevel.equality import EqualityConstrained
    from paretune.moo.bilevel.forum import FORUM
    from paretune.moo.bilevel.gmoba import GMOBA
    from paretune.moo.bilevel.itd import ITD
    from paretune.moo.bilevel.lookahead import Lookahead
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

METHODS: dict[str, Any] = {
    "wc_augmented": "paretune.moo.solvers.wc_augmented:WCAugmented",
    "wc_penalty": "paretune.moo.solvers.wc_penalty:WCPenalty",
    "wc_soba": "paretune.moo.bilevel.wc_soba:WCSOBA",
    "itd": "paretune.moo.bilevel.itd:ITD",
    "soba": "paretune.moo.bilevel.soba:SOBA",
    "moml": "paretune.moo.bilevel.moml:MOML",
    "moco": "paretune.moo.bilevel.moco:MoCo",
    "forum": "paretune.moo.bilevel.forum:FORUM",
    "gmoba": "paretune.moo.bilevel.gmoba:GMOBA",
    "lookahead": "paretune.moo.bilevel.lookahead:Lookahead",
}
"""By name, in the order of tables and figures: a class, or ``"module:class"``. The first two are
solvers for constraints, here with ∇_y g = 0 as the constraint."""

_HOME = {
    "BilevelHistory": "paretune.moo.bilevel.result",
    "BilevelMethod": "paretune.moo.bilevel.method",
    "BilevelProblem": "paretune.moo.bilevel.problem",
    "BilevelResult": "paretune.moo.bilevel.result",
    "EqualityConstrained": "paretune.moo.bilevel.equality",
    "FORUM": "paretune.moo.bilevel.forum",
    "GMOBA": "paretune.moo.bilevel.gmoba",
    "ITD": "paretune.moo.bilevel.itd",
    "Iterate": "paretune.moo.bilevel.method",
    "Lookahead": "paretune.moo.bilevel.lookahead",
    "MOML": "paretune.moo.bilevel.moml",
    "MoCo": "paretune.moo.bilevel.moco",
    "ModuleVector": "paretune.moo.bilevel.module",
    "NonConvexLowerLevelWarning": "paretune.moo.bilevel.oracle",
    "Oracle": "paretune.moo.bilevel.oracle",
    "Polished": "paretune.moo.bilevel.polish",
    "Record": "paretune.moo.bilevel.result",
    "SOBA": "paretune.moo.bilevel.soba",
    "StepwiseMultipliers": "paretune.moo.solvers.multipliers",
    "StochasticBilevelProblem": "paretune.moo.bilevel.problem",
    "StochasticWCAugmented": "paretune.moo.bilevel.stochastic_wc_augmented",
    "WCSOBA": "paretune.moo.bilevel.wc_soba",
    "polish_lower": "paretune.moo.bilevel.polish",
}

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
    "Lookahead",
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


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
