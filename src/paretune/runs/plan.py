"""Which points a recipe asks for, and the phases in which each is worked on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paretune.results.points import PlannedPoint

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe


def plan(recipe: "Recipe") -> list[PlannedPoint]:
    """The points of a recipe in its order, once with each seed."""
    seeds = recipe.sweep.seeds
    return [
        PlannedPoint(
            preference, seed, preference.slug() + (f"-seed{seed}" if len(seeds) > 1 else "")
        )
        for seed in seeds
        for preference in recipe.points
    ]


def warm_start(point: PlannedPoint, planned: Sequence[PlannedPoint]) -> PlannedPoint | None:
    """The nearest point before this one in the recipe, of the same seed; the first of equals.

    Only the recipe's order counts, so that it does not matter which points were finished when.
    """
    earlier = [p for p in planned[: planned.index(point)] if p.seed == point.seed]

    def distance(other: PlannedPoint) -> float:
        pairs = zip(point.preference.weights, other.preference.weights, strict=True)
        return round(sum((a - b) ** 2 for a, b in pairs), 12)

    return min(earlier, key=distance, default=None)
