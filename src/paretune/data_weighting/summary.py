"""What the cells of a run say together: tables, quality of the fronts, planted truths.

Losses are compared after re-solving the lower level, at the same x. All numbers are means over
seeds with their standard deviation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.data_weighting.tasks.task import Task
from paretune.data_weighting.trial import CellResult
from paretune.moo.bilevel import METHODS
from paretune.moo.bilevel.choice import uses_preference
from paretune.moo.indicators import (
    area_ratio,
    epsilon_additive,
    epsilon_multiplicative,
    hypervolume,
    nondominated,
    radar_area,
)
from paretune.moo.preference import Preference
from paretune.recipes.data_weighting import WeighRecipe
from paretune.results.spread import Spread

Array = NDArray[np.float64]

WEIGHTED_CHEBYSHEV = ("wc_augmented", "wc_penalty")
"""The methods that the others are compared with."""

KINDS = ("own", "resolved", "held_out")
"""Losses where the method stopped, after re-solving, and on test data after re-solving."""

_REACHED = 1 + 1e-3  # a value this much above another counts as reaching it


@dataclass(frozen=True)
class Summary:
    """A run as tables.

    Attributes:
        name: of the recipe.
        objectives, sets: names.
        matched, random: as in `Task`.
        preferences: the recipe's points, in order.
        methods: those with a finished cell.
        reference_point: corner of all hypervolumes.
        cells: all results.
        quality: per method and kind of losses, the indicators of its points of all preferences.
        missing: cells that have no result yet.
    """

    name: str
    objectives: tuple[str, ...]
    sets: tuple[str, ...]
    matched: dict[str, str]
    random: tuple[str, ...]
    preferences: tuple[Preference, ...]
    methods: tuple[str, ...]
    reference_point: tuple[float, ...]
    cells: tuple[CellResult, ...]
    quality: dict[str, dict[str, dict[str, Spread | None]]]
    missing: int

    @property
    def done(self) -> list[CellResult]:
        return [cell for cell in self.cells if cell.status == "done"]

    @property
    def failed(self) -> list[CellResult]:
        return [cell for cell in self.cells if cell.status == "failed"]

    def of(self, method: str, preference: Preference) -> list[CellResult]:
        """The finished cells of a method that stand for a preference, one a seed."""
        wanted = dict(preference) if uses_preference(method) else None
        return [c for c in self.done if c.method == method and c.preference == wanted]

    def title(self, preference: Mapping[str, float]) -> str:
        """``"uniform"``, the one favoured objective with its weight, or all weights."""
        weights = sorted(preference.values(), reverse=True)
        if weights[0] - weights[-1] < 1e-9:
            return "uniform"
        if weights[1] - weights[-1] < 1e-9:
            name = max(preference, key=lambda key: preference[key])
            return f"{name} {weights[0]:g}"
        return f"({', '.join(f'{weight:g}' for weight in preference.values())})"

    def weight(self, method: str, preference: Preference, name: str) -> Spread | None:
        """The weight of a training set at the end."""
        place = self.sets.index(name)
        found = [cell.weights[place] for cell in self.of(method, preference)]
        return Spread.of(found)

    def lines(self) -> list[str]:
        """What the terminal is told beside the counts: nothing."""
        return []

    def to_json(self) -> dict[str, Any]:
        value = asdict(self)
        value["preferences"] = [dict(preference) for preference in self.preferences]
        for cell in value["cells"]:
            del cell["curve"]
        return value


def summarise(
    recipe: WeighRecipe, task: Task, results: Sequence[CellResult], missing: int
) -> Summary:
    """The tables of a run; failed cells count for nothing but are kept.

    The reference point of the hypervolumes is the recipe's, or, objective by objective, a tenth of
    their range beyond the worst loss after re-solving of all finished cells.
    """
    done = [cell for cell in results if cell.status == "done"]
    methods = tuple(name for name in METHODS if any(cell.method == name for cell in done))
    if recipe.reference_point is not None:
        reference = tuple(recipe.reference_point)
    else:
        ends = np.array([cell.resolved for cell in done])
        reference = tuple(ends.max(0) + 0.1 * (ends.max(0) - ends.min(0))) if done else ()
    return Summary(
        name=recipe.name,
        objectives=task.objectives,
        sets=task.sets,
        matched=task.matched,
        random=task.random,
        preferences=tuple(recipe.points),
        methods=methods,
        reference_point=tuple(map(float, reference)),
        cells=tuple(results),
        quality=_quality(methods, done, reference),
        missing=missing,
    )


def _quality(
    methods: Sequence[str], done: Sequence[CellResult], reference: Sequence[float]
) -> dict[str, dict[str, dict[str, Spread | None]]]:
    """Indicators seed by seed, the front being that of all methods together."""
    collected: dict[str, dict[str, dict[str, list[float]]]] = {
        method: {kind: {} for kind in KINDS} for method in methods
    }
    for seed in sorted({cell.seed for cell in done}):
        for kind in KINDS:
            points = {
                method: [getattr(c, kind) for c in done if (c.method, c.seed) == (method, seed)]
                for method in methods
            }
            points = {method: found for method, found in points.items() if found}
            union = np.array([point for found in points.values() for point in found])
            front = union[nondominated(union)]
            for method, found in points.items():
                values = {
                    "hypervolume": hypervolume(found, reference).value,
                    "epsilon_additive": epsilon_additive(found, front),
                    "epsilon_multiplicative": epsilon_multiplicative(found, front),
                }
                if union.shape[1] >= 3:
                    values["radar_area"] = radar_area(found)
                    for name in WEIGHTED_CHEBYSHEV:
                        if name in points:
                            values[f"area_{name}"] = area_ratio(points[name], found)
                for name, value in values.items():
                    collected[method][kind].setdefault(name, []).append(value)
    return {
        method: {
            kind: {name: Spread.of(values) for name, values in named.items()}
            for kind, named in kinds.items()
        }
        for method, kinds in collected.items()
    }


def time_to_match(summary: Summary, method: str, baseline: str) -> list[dict[str, float]]:
    """How soon `method` is as good as the baseline ever is, per preference and seed.

    Good is max λ_s f_s after re-solving. Entries have the baseline's ``seconds`` and
    ``n_gradients`` up to its best, and the method's up to the first record that is as good,
    infinite if there is none.
    """
    found = []
    for preference in summary.preferences:
        others = {cell.seed: cell for cell in summary.of(baseline, preference)}
        for cell in summary.of(method, preference):
            other = others.get(cell.seed)
            if other is None or cell.curve is None or other.curve is None:
                continue
            own, best = (
                np.max(np.array(each.curve.resolved) * preference.array(), axis=1)  # type: ignore[union-attr]
                for each in (cell, other)
            )
            end = int(best.argmin())
            reached = np.flatnonzero(own <= best[end] * _REACHED)
            entry = {}
            for key in ("seconds", "n_gradients"):
                column = getattr(cell.curve, key)
                entry[key] = float(column[reached[0]]) if len(reached) else math.inf
                entry[f"baseline_{key}"] = float(getattr(other.curve, key)[end])
            found.append(entry)
    return found


def shortfall(summary: Summary, combine: Callable[[Array], Any]) -> dict[str, list[Spread | None]]:
    """Per method and preference, combine(λ∘F) after re-solving, above the best of any method.

    In percent of the best for the same preference and seed; over seeds, None without cells.
    """
    found: dict[str, list[Spread | None]] = {method: [] for method in summary.methods}
    for preference in summary.preferences:
        heights = {
            (method, cell.seed): float(combine(preference.array() * np.array(cell.resolved)))
            for method in summary.methods
            for cell in summary.of(method, preference)
        }
        seeds = {seed for _, seed in heights}
        best = {seed: min(v for (_, of), v in heights.items() if of == seed) for seed in seeds}
        for method, spreads in found.items():
            over = [100 * (v / best[seed] - 1) for (of, seed), v in heights.items() if of == method]
            spreads.append(Spread.of(over))
    return found
