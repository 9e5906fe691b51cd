"""Options of methods that have one gated adapter for every preference."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from paretune.errors import InputError
from paretune.moo.calibration import Meaning
from paretune.moo.gates import Basis, Inner
from paretune.recipes.section import Positive, Section

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe

AtLeastTwo = Annotated[int, Field(ge=2)]


class DialOptions(Section):
    """What a preference means on such an adapter."""

    calibrate: Meaning = "even"
    """What p means: `even` steps along the front of the validation losses, the `chebyshev` point
    of p in their ranges, or `none`: the gate itself."""
    calibration_points: AtLeastTwo = 5
    """Positions along an edge of the simplex at which the validation losses are measured."""
    extrapolate: Annotated[float, Field(ge=0, le=4)] = 1.0
    """How far beyond the simplex the calibration may look, in lengths of its edge (M = 2)."""


class ConditionedOptions(DialOptions):
    """One adapter of M blocks for every preference; `lora.r` is the rank of a block."""

    steps: Positive | None = None
    """Optimiser steps of the one training; null is what the recipe's `train` says for a point."""
    basis: Basis = "centred"
    """`centred`: a shared block and M - 1 blocks of trade-offs; `objectives`: a block each."""
    inner: Inner = "pwg"
    """How objectives are weighed at a preference: `pwg`, by p itself, every row of a batch at its
    own; `clamp`, by CLAMP with mu auto, at `preference_groups` of them in a step."""
    preference_groups: Positive = 2
    """`inner: clamp`: preferences of a step, among which its rows are divided."""
    evaluated_preferences: AtLeastTwo = 3
    """Validation during training is at a fixed grid of preferences, so many along an edge of the
    simplex; early stopping (`train.early_stopping_patience`) goes by the mean over it."""

    def check_recipe(self, recipe: "Recipe") -> None:
        """Raise InputError where it is plain before any training that the recipe does not fit."""
        if recipe.lora is None:
            raise InputError("A conditioned adapter needs a lora section in the recipe.")
        if len(recipe.data.objectives) < 2:
            raise InputError("A conditioned adapter needs at least two objectives.")

    def arguments(self) -> dict[str, Any]:
        """Those of its options that are arguments of the trainer."""
        return {name: getattr(self, name) for name in TRAINER_OPTIONS}


TRAINER_OPTIONS = ("basis", "inner", "preference_groups", "evaluated_preferences")
