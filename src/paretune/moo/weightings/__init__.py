"""Weightings: how M gradients combine into one direction, one file a method.

A new one is a frozen dataclass that is a `Weighting`, its fields the options, and a line below.
"""

from paretune.moo.weightings.base import Weighting, Weights
from paretune.moo.weightings.clamp import Clamp
from paretune.moo.weightings.clamp_state import ClampOptions, ClampState
from paretune.moo.weightings.linear import Linear
from paretune.moo.weightings.mgda import MGDA
from paretune.moo.weightings.raco import RACO

WEIGHTINGS: dict[str, type[Weighting | ClampOptions]] = {
    "clamp": ClampOptions,
    "linear": Linear,
    "mgda": MGDA,
    "raco": RACO,
}
"""By the name in a recipe: the weightings, each with its options (of CLAMP, whose state the trainer
keeps, the options alone)."""

__all__ = [
    "MGDA",
    "RACO",
    "WEIGHTINGS",
    "Clamp",
    "ClampOptions",
    "ClampState",
    "Linear",
    "Weighting",
    "Weights",
]
