"""Multi-objective optimisation: the mathematics, tensors in and tensors out.

Names that need torch load on first use, so that `Preference` alone does not import it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from paretune.moo.preference import Preference, das_dennis, named_preferences
from paretune.moo.simplex_qp import QPSolution, simplex_qp

if TYPE_CHECKING:
    from paretune.moo.clamp_state import ClampState
    from paretune.moo.descent import Descent
    from paretune.moo.optimize import minimize
    from paretune.moo.problem import Problem
    from paretune.moo.result import History, Method, Result
    from paretune.moo.weightings import MGDA, Clamp, Linear, Weighting, Weights

_HOME = {
    "MGDA": "weightings",
    "Clamp": "weightings",
    "ClampState": "clamp_state",
    "Descent": "descent",
    "History": "result",
    "Linear": "weightings",
    "Method": "result",
    "Problem": "problem",
    "Result": "result",
    "Weighting": "weightings",
    "Weights": "weightings",
    "minimize": "optimize",
}

__all__ = [
    "MGDA",
    "Clamp",
    "ClampState",
    "Descent",
    "History",
    "Linear",
    "Method",
    "Preference",
    "Problem",
    "QPSolution",
    "Result",
    "Weighting",
    "Weights",
    "das_dennis",
    "minimize",
    "named_preferences",
    "simplex_qp",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
