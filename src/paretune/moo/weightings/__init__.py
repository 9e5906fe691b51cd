"""Weightings: how M gradients combine into one direction, one file a method."""

from paretune.moo.weightings.base import Weighting, Weights
from paretune.moo.weightings.clamp import Clamp
from paretune.moo.weightings.clamp_state import ClampState
from paretune.moo.weightings.linear import Linear
from paretune.moo.weightings.mgda import MGDA
from paretune.moo.weightings.raco import RACO

__all__ = ["MGDA", "RACO", "Clamp", "ClampState", "Linear", "Weighting", "Weights"]
