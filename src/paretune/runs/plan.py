"""Which points a recipe asks for, and the phases in which each is worked on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.errors import InputError
from paretune.files import read_object
from paretune.moo.placement import ends_range, next_preference
from paretune.moo.preference import Preference
from paretune.moo.weightings import ClampOptions
from paretune.results.points import PlannedPoint
from paretune.results.weights import TRAINING

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe

VALIDATION = "validation"
"""The key in ``training.json`` of losses on the validation split, by which points are placed."""


def plan(recipe: "Recipe", run: Path) -> list[PlannedPoint]:
    """The points of a recipe in its order, once with each seed.

    Of `sweep.placement: gap` those that are known: what is trained in the run folder, and the next.
    """
    if recipe.sweep.placement == "gap":
        return [point for seed in recipe.sweep.seeds for point in _placed(recipe, run, seed)[0]]
    return [
        _point(recipe, preference, seed)
        for seed in recipe.sweep.seeds
        for preference in recipe.points
    ]


def count_points(recipe: "Recipe") -> int:
    """How many points there will be at most."""
    with_a_seed = recipe.sweep.points or len(recipe.points)
    return len(recipe.sweep.seeds) * with_a_seed


def scaled_recipe(recipe: "Recipe", run: Path, point: PlannedPoint) -> "Recipe":
    """The recipe with which a point is trained: with placement by gap, CLAMP has the ends' ranges.

    So its points are those of the least max_m p_m u_m, u the losses in their ranges.
    """
    if recipe.sweep.placement != "gap" or not isinstance(recipe.method, ClampOptions):
        return recipe
    losses = _placed(recipe, run, point.seed)[1]
    found = ends_range(*losses[:2]) if len(losses) > 1 else None
    if found is None or 0 in point.preference.values():
        return recipe
    ideal, nadir = (dict(zip(point.preference.names, each, strict=True)) for each in found)
    method = replace(recipe.method, ideal=ideal, nadir=nadir)
    return recipe.model_copy(update={"method": method})


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


def _point(recipe: "Recipe", preference: Preference, seed: int) -> PlannedPoint:
    return PlannedPoint(preference, seed, preference.slug() + seed_suffix(recipe, seed))


def _placed(recipe: "Recipe", run: Path, seed: int) -> tuple[list[PlannedPoint], list[list[float]]]:
    """The points of a seed by gap, and the validation losses of those that are trained.

    Each is a function of what was trained before it, so a killed run goes on as if it had not been.
    """
    names = recipe.data.objectives
    aim: Any = "linear" if recipe.method_name == "linear" else "chebyshev"
    points: list[PlannedPoint] = []
    losses: list[list[float]] = []
    while len(points) == len(losses) and len(points) < (recipe.sweep.points or 0):
        weights = next_preference(losses, aim)
        if weights is None:
            break
        point = _point(recipe, Preference.of(dict(zip(names, weights, strict=True))), seed)
        points.append(point)
        training = point.folder(run) / TRAINING
        if training.exists():
            losses.append(_validation_losses(training, names))
    return points, losses


def _validation_losses(training: Path, names: Sequence[str]) -> list[float]:
    try:
        found = read_object(training)[VALIDATION]
        return [float(found[name]) for name in names]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"'{training}' is damaged ({error}): delete the folder '{training.parent}' and run the "
            "sweep again."
        ) from error
