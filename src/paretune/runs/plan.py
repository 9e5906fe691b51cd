"""Which points a recipe asks for, and the phases in which each is worked on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paretune.results.points import PlannedPoint

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe


def plan(recipe: "Recipe") -> list[PlannedPoint]:
    """The points of a recipe in its order, once with each seed."""
    return [
        PlannedPoint(preference, seed, preference.slug() + seed_suffix(recipe, seed))
        for seed in recipe.sweep.seeds
        for preference in recipe.points
    ]


def seed_suffix(recipe: "Recipe", seed: int) -> str:
    """What the folders of points with a seed end in, where there are several."""
    return f"-seed{seed}" if len(recipe.sweep.seeds) > 1 else ""


def warm_start(point: PlannedPoint, planned: Sequence[PlannedPoint]) -> PlannedPoint | None:
    """The nearest point before this one in the recipe, of the same seed; the first of equals.

    Only the recipe's order counts, so that it does not matter which points were finished when.
    """
    earlier = [p for p in planned[: planned.index(point)] if p.seed == point.seed]

    def distance(other: PlannedPoint) -> float:
        pairs = zip(point.preference.weights, other.preference.weights, strict=True)
        return round(sum((a - b) ** 2 for a, b in pairs), 12)

    return min(earlier, key=distance, default=None)
