"""Multi-objective optimisation: the mathematics, tensors in and tensors out.

Names that need torch load on first use, so that `Preference` alone does not import it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from paretune.moo.numerics.simplex_qp import QPSolution, simplex_qp
from paretune.moo.preference import Preference, das_dennis, named_preferences

if TYPE_CHECKING:
    from paretune.moo.bilevel.module import ModuleVector
    from paretune.moo.bilevel.polish import Polished, polish_lower
    from paretune.moo.bilevel.problem import BilevelProblem, StochasticBilevelProblem
    from paretune.moo.bilevel.result import BilevelResult
    from paretune.moo.bilevel.stochastic_wc_augmented import StochasticWCAugmented
    from paretune.moo.numerics.affine import AffineConstraints
    from paretune.moo.numerics.kkt import (
        DegenerateConstraintsWarning,
        KKTParts,
        KKTSystem,
        Multipliers,
        best_multipliers,
        kkt_system,
    )
    from paretune.moo.numpy_functions import black_box
    from paretune.moo.optimize import minimize
    from paretune.moo.problem import Problem, StochasticProblem
    from paretune.moo.solvers.descent import Descent
    from paretune.moo.solvers.exploration import FrontWarning, explore
    from paretune.moo.solvers.front import Exploration
    from paretune.moo.solvers.linear_scalarization import LinearScalarization
    from paretune.moo.solvers.result import History, Method, Result
    from paretune.moo.solvers.search import Solved
    from paretune.moo.solvers.watch import Progress
    from paretune.moo.solvers.wc_augmented import WCAugmented
    from paretune.moo.solvers.wc_penalty import WCPenalty
    from paretune.moo.weightings import MGDA, RACO, Clamp, Linear, Weighting, Weights
    from paretune.moo.weightings.clamp_state import ClampState

_HOME = {
    "AffineConstraints": "numerics.affine",
    "BilevelProblem": "bilevel.problem",
    "BilevelResult": "bilevel.result",
    "Clamp": "weightings",
    "ClampState": "weightings",
    "DegenerateConstraintsWarning": "numerics.kkt",
    "Descent": "solvers.descent",
    "Exploration": "solvers.front",
    "FrontWarning": "solvers.exploration",
    "History": "solvers.result",
    "KKTParts": "numerics.kkt",
    "KKTSystem": "numerics.kkt",
    "Linear": "weightings",
    "LinearScalarization": "solvers.linear_scalarization",
    "MGDA": "weightings",
    "Method": "solvers.result",
    "ModuleVector": "bilevel.module",
    "Multipliers": "numerics.kkt",
    "Polished": "bilevel.polish",
    "Problem": "problem",
    "Progress": "solvers.watch",
    "RACO": "weightings",
    "Result": "solvers.result",
    "Solved": "solvers.search",
    "StochasticBilevelProblem": "bilevel.problem",
    "StochasticProblem": "problem",
    "StochasticWCAugmented": "bilevel.stochastic_wc_augmented",
    "WCAugmented": "solvers.wc_augmented",
    "WCPenalty": "solvers.wc_penalty",
    "Weighting": "weightings",
    "Weights": "weightings",
    "best_multipliers": "numerics.kkt",
    "black_box": "numpy_functions",
    "explore": "solvers.exploration",
    "kkt_system": "numerics.kkt",
    "minimize": "optimize",
    "polish_lower": "bilevel.polish",
}

__all__ = [
    "MGDA",
    "RACO",
    "AffineConstraints",
    "BilevelProblem",
    "BilevelResult",
    "Clamp",
    "ClampState",
    "DegenerateConstraintsWarning",
    "Descent",
    "Exploration",
    "FrontWarning",
    "History",
    "KKTParts",
    "KKTSystem",
    "Linear",
    "LinearScalarization",
    "Method",
    "ModuleVector",
    "Multipliers",
    "Polished",
    "Preference",
    "Problem",
    "Progress",
    "QPSolution",
    "Result",
    "Solved",
    "StochasticBilevelProblem",
    "StochasticProblem",
    "StochasticWCAugmented",
    "WCAugmented",
    "WCPenalty",
    "Weighting",
    "Weights",
    "best_multipliers",
    "black_box",
    "das_dennis",
    "explore",
    "kkt_system",
    "minimize",
    "named_preferences",
    "polish_lower",
    "simplex_qp",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
