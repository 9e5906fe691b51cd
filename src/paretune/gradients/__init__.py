"""How the M gradients of a step are obtained: in one pass, or one backward pass each."""

from paretune.gradients.bank import GradientBank
from paretune.gradients.engine import Method, ObjectiveGradients

__all__ = ["GradientBank", "Method", "ObjectiveGradients"]
