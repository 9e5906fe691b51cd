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

from paretune.moo.indicators import (
    area_ratio,
    epsilon_additive,
    epsilon_multiplicative,
    hypervolume,
    nondominated,
    radar_area,
)
from paretune.moo.preference import Preference
from paretune.recipes.weighing import BLIND, METHODS, WeighRecipe
from paretune.weighting.cell import CellResult
from paretune.weighting.task import Task

Array = NDArray[np.float64]

OURS = ("wc_augmented", "wc_penalty")
KINDS = ("own", "resolved", "held_out")
"""Losses where the method stopped, after re-solving, and on test data after re-solving."""

_REACHED = 1 + 1e-3  # a value this much above another counts as reaching it


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (0 for one value) over seeds."""

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return cls(float(np.mean(values)), deviation, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3g} ± {self.std:.1g}" if self.count > 1 else f"{self.mean:.4g}"


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
    quality: dict[str, dict[str, dict[str, Spread]]]
    missing: int

    @property
    def done(self) -> list[CellResult]:
        return [cell for cell in self.cells if cell.status == "done"]

    @property
    def failed(self) -> list[CellResult]:
        return [cell for cell in self.cells if cell.status == "failed"]

    def of(self, method: str, preference: Preference) -> list[CellResult]:
        """The finished cells of a method that stand for a preference, one a seed."""
        wanted = None if method in BLIND else dict(preference)
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
        return Spread.of(found) if found else None

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
) -> dict[str, dict[str, dict[str, Spread]]]:
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
                    for ours in OURS:
                        if ours in points:
                            values[f"area_{ours}"] = area_ratio(points[ours], found)
                for name, value in values.items():
                    collected[method][kind].setdefault(name, []).append(value)
    return {
        method: {
            kind: {name: Spread.of(values) for name, values in named.items()}
            for kind, named in kinds.items()
        }
        for method, kinds in collected.items()
    }


def time_to_match(summary: Summary, ours: str, rival: str) -> list[dict[str, float]]:
    """How soon `ours` is as good as the rival ever is, per preference and seed.

    Good is max λ_s f_s after re-solving. Entries have the rival's ``seconds`` and ``n_gradients``
    up to its best, and ours up to the first record that is as good, infinite if there is none.
    """
    found = []
    for preference in summary.preferences:
        theirs = {cell.seed: cell for cell in summary.of(rival, preference)}
        for cell in summary.of(ours, preference):
            other = theirs.get(cell.seed)
            if other is None or cell.curve is None or other.curve is None:
                continue
            mine, best = (
                np.max(np.array(each.curve.resolved) * preference.array(), axis=1)  # type: ignore[union-attr]
                for each in (cell, other)
            )
            end = int(best.argmin())
            reached = np.flatnonzero(mine <= best[end] * _REACHED)
            entry = {}
            for key in ("seconds", "n_gradients"):
                column = getattr(cell.curve, key)
                entry[key] = float(column[reached[0]]) if len(reached) else math.inf
                entry[f"rival_{key}"] = float(getattr(other.curve, key)[end])
            found.append(entry)
    return found


def to_markdown(summary: Summary) -> str:
    """The tables as ``weigh.md`` holds them."""
    lines = [f"# {summary.name}", ""]
    if summary.missing:
        lines += [f"{summary.missing} cells have no result yet.", ""]
    if summary.done:
        lines += [*_quality_table(summary), *_met_tables(summary)]
        lines += [*_truth_tables(summary), *_speed_table(summary)]
        for preference in summary.preferences:
            lines += _preference_table(summary, preference)
        lines += _honesty_table(summary)
    if summary.failed:
        lines += ["## Cells that failed", "", "Delete a cell's folder to run it again.", ""]
        for cell in summary.failed:
            point = "any preference" if cell.preference is None else summary.title(cell.preference)
            lines.append(f"- {cell.method}, seed {cell.seed}, {point}: {cell.reason}")
    return "\n".join(lines).rstrip() + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(map(str, cells)) + " |"

    return [line(header), line(["---"] * len(header)), *map(line, rows), ""]


def _quality_table(summary: Summary) -> list[str]:
    names = list(summary.quality[summary.methods[0]]["resolved"])
    reference = ", ".join(f"{value:.4g}" for value in summary.reference_point)
    lines = [
        "## Quality of the points of all preferences together",
        "",
        f"Hypervolume (larger is better) against the reference point ({reference}). ε against the "
        "non-dominated points of all methods (smaller is better; 0 and 1 are best). Area: of the "
        "radar polygon of 1/loss; area ratios S_ours / S_method, above 1 where ours is larger.",
        "",
    ]
    titles = {"own": "where the method stopped", "resolved": "after re-solving the lower level"}
    titles["held_out"] = "on test data, after re-solving"
    for kind in ("resolved", "own", "held_out"):
        rows = [
            [method, *(summary.quality[method][kind].get(name, "") for name in names)]
            for method in summary.methods
        ]
        header = ["method", *(name.replace("area_", "area ratio of ") for name in names)]
        lines += [f"Losses {titles[kind]}:", "", *_table(header, rows)]
    return lines


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
            spreads.append(Spread.of(over) if over else None)
    return found


def _met_tables(summary: Summary) -> list[str]:
    lines = [
        "## How well the preferences are met",
        "",
        "After re-solving, in percent above the best of any method for the same preference and "
        "seed; mean over seeds.",
        "",
    ]
    header = ["method", *(summary.title(p) for p in summary.preferences), "mean"]
    kinds: list[tuple[str, Callable[[Array], Any]]] = [("max", np.max), ("Σ", np.sum)]
    for name, combine in kinds:
        rows: list[list[object]] = []
        for method, spreads in shortfall(summary, combine).items():
            known = [spread.mean for spread in spreads if spread is not None]
            cells = ["" if spread is None else f"{spread.mean:.2f}" for spread in spreads]
            rows.append([method, *cells, f"{sum(known) / len(known):.2f}" if known else ""])
        lines += [f"{name} λ_s f_s:", "", *_table(header, rows)]
    return lines


def _truth_tables(summary: Summary) -> list[str]:
    """Weights that are known beforehand to be right: of random scores, of a matched set."""
    lines = []
    for name in (*summary.random, *summary.matched):
        objective = summary.matched.get(name)
        points = sorted(
            summary.preferences, key=lambda p: p[objective] if objective is not None else 0
        )
        start = f"1/{len(summary.sets)} = {1 / len(summary.sets):.3f}"
        lines += [
            f"## Weight of the set '{name}'",
            "",
            f"It starts at {start}. "
            + (
                "Its scores are random: it should fall."
                if objective is None
                else f"It should grow with the weight of the criterion {objective}."
            ),
            "",
        ]
        header = [
            summary.title(p) + (f" (λ {p[objective]:.3g})" if objective else "") for p in points
        ]
        rows = [
            [method, *(summary.weight(method, p, name) or "" for p in points)]
            for method in summary.methods
        ]
        lines += _table(["method", *header], rows)
    return lines


def _speed_table(summary: Summary) -> list[str]:
    rows = []
    for ours in OURS:
        for rival in summary.methods:
            found = time_to_match(summary, ours, rival) if ours in summary.methods else []
            if rival == ours or not found:
                continue
            row: list[object] = [ours, rival]
            for key in ("seconds", "n_gradients"):
                ratios = [each[key] / max(each[f"rival_{key}"], 1e-9) for each in found]
                middle = float(np.median(ratios))
                row.append(f"{middle:.3g}" if math.isfinite(middle) else "never")
            row.append(f"{sum(math.isfinite(e['seconds']) for e in found)} of {len(found)}")
            rows.append(row)
    if not rows:
        return []
    return [
        "## How soon ours is as good as the rival ever gets",
        "",
        "Good is max λ_s f_s after re-solving, of each preference and seed; what ours took over "
        "what the rival took to its best, the median.",
        "",
        *_table(["ours", "rival", "seconds", "gradient evaluations", "reached"], rows),
    ]


def _preference_table(summary: Summary, preference: Preference) -> list[str]:
    header = ["method"]
    header += [f"{name}: own → re-solved" for name in summary.objectives]
    header += ["max λf re-solved", "Σ λf re-solved"]
    header += [f"weight of {name}" for name in summary.sets]
    rows = []
    for method in summary.methods:
        cells = summary.of(method, preference)
        if not cells:
            continue
        own, resolved = (np.array([getattr(c, k) for c in cells]) for k in ("own", "resolved"))
        row: list[object] = [method]
        for column in range(len(summary.objectives)):
            row.append(f"{own[:, column].mean():.3f} → {Spread.of(resolved[:, column].tolist())}")
        scaled = resolved * preference.array()
        row += [Spread.of(scaled.max(1).tolist()), Spread.of(scaled.sum(1).tolist())]
        row += [summary.weight(method, preference, name) for name in summary.sets]
        rows.append(row)
    weights = ", ".join(f"{name} {weight:.3g}" for name, weight in preference.items())
    return [
        f"## Preference {summary.title(preference)}",
        "",
        f"λ: {weights}.",
        "",
        *_table(header, rows),
    ]


def _honesty_table(summary: Summary) -> list[str]:
    """What each method spent, and how far from feasible and stationary it stopped."""
    rows = []
    for method in summary.methods:
        cells = [cell for cell in summary.done if cell.method == method]
        residuals = [r for c in cells if c.kkt and (r := c.kkt["residual"]) is not None]
        solved = [cell.lower_gradient_norm_resolved for cell in cells]
        rows.append(
            [
                method,
                len(cells),
                sum(cell.method == method for cell in summary.failed),
                f"{np.mean([cell.steps for cell in cells]):.0f}",
                f"{np.mean([cell.n_gradients for cell in cells]):.0f}",
                f"{np.mean([cell.seconds for cell in cells]):.2f}",
                f"{np.median([cell.lower_gradient_norm for cell in cells]):.1e}",
                f"{np.max(solved):.1e}",
                f"{np.median(residuals):.1e}" if residuals else "not known",
            ]
        )
    return [
        "## What it took, and where it stopped",
        "",
        "Means over cells; the lower level's gradient and the KKT residual are medians.",
        "",
        *_table(
            [
                "method",
                "cells",
                "failed",
                "steps",
                "gradient evaluations",
                "seconds",
                "‖∇_y g‖ where it stopped",
                "largest after re-solving",
                "‖K‖",
            ],
            rows,
        ),
    ]
