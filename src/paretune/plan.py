"""Which points a recipe asks for, and the phases in which each is worked on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from paretune.moo.preference import Preference

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe

Phase = Literal["prepare", "train", "evaluate", "generate"]
PHASES: tuple[Phase, ...] = get_args(Phase)

Report = Callable[[Phase, float], None]
"""Told how much of a phase is done, from 0 to 1."""


@dataclass(frozen=True)
class PlannedPoint:
    """A point to train: its preference and seed, and the name of its folder."""

    preference: Preference
    seed: int
    name: str

    def folder(self, run: Path) -> Path:
        return run / "points" / self.name


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
