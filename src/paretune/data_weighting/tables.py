"""The summary of a run as Markdown: what ``weigh.md`` holds."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from paretune.data_weighting.summary import (
    WEIGHTED_CHEBYSHEV,
    Array,
    Summary,
    shortfall,
    time_to_match,
)
from paretune.moo.preference import Preference
from paretune.results.spread import Spread
from paretune.results.table import Cell, Column, Table, left, numbers
from paretune.results.text import markdown_text, preference_text


def to_markdown(summary: Summary) -> str:
    """The tables as ``weigh.md`` holds them."""
    parts = [f"# {markdown_text(summary.name)}"]
    if summary.missing:
        parts += [f"{summary.missing} cells have no result yet."]
    if summary.done:
        parts += [*_quality(summary), *_met(summary), *_known_weights(summary), *_speed(summary)]
        for preference in summary.preferences:
            parts += _points(summary, preference)
        parts += _spent(summary)
    if summary.failed:
        parts += ["## Cells that failed", "Delete a cell's folder to run it again."]
        parts += ["\n".join(_failures(summary))]
    return "\n\n".join(parts) + "\n"


def _quality(summary: Summary) -> list[str]:
    names = list(summary.quality[summary.methods[0]]["resolved"])
    reference = ", ".join(f"{value:.4g}" for value in summary.reference_point)
    parts = [
        "## Quality of the points of all preferences together",
        f"Hypervolume (larger is better) against the reference point ({reference}). ε against the "
        "non-dominated points of all methods (smaller is better; 0 and 1 are best). Area: of the "
        "radar polygon of 1/loss; area ratios S_wc / S_method, above 1 where that of the "
        "weighted-Chebyshev method is larger.",
    ]
    titles = {"own": "where the method stopped", "resolved": "after re-solving the lower level"}
    titles["held_out"] = "on test data, after re-solving"
    columns = [left("method")]
    columns += numbers([name.replace("area_", "area ratio of ") for name in names])
    for kind in ("resolved", "own", "held_out"):
        rows = [
            [method, *(summary.quality[method][kind].get(name) for name in names)]
            for method in summary.methods
        ]
        parts += [f"Losses {titles[kind]}:", Table(columns, rows).to_markdown()]
    return parts


def _met(summary: Summary) -> list[str]:
    parts = [
        "## How well the preferences are met",
        "After re-solving, in percent above the best of any method for the same preference and "
        "seed; mean over seeds.",
    ]
    columns = [left("method")]
    columns += numbers([*(summary.title(p) for p in summary.preferences), "mean"], ".2f")
    kinds: list[tuple[str, Callable[[Array], Any]]] = [("max", np.max), ("Σ", np.sum)]
    for name, combine in kinds:
        rows: list[list[Cell]] = []
        for method, spreads in shortfall(summary, combine).items():
            means = [None if spread is None else spread.mean for spread in spreads]
            over = Spread.of(means)
            rows.append([method, *means, None if over is None else over.mean])
        parts += [f"{name} λ_s f_s:", Table(columns, rows).to_markdown()]
    return parts


def _known_weights(summary: Summary) -> list[str]:
    """Weights that are known beforehand to be right: of random scores, of a matched set."""
    parts = []
    for name in (*summary.random, *summary.matched):
        objective = summary.matched.get(name)
        points = sorted(
            summary.preferences, key=lambda p: p[objective] if objective is not None else 0
        )
        start = f"1/{len(summary.sets)} = {1 / len(summary.sets):.3f}"
        head = [
            summary.title(p) + (f" (λ {p[objective]:.3g})" if objective else "") for p in points
        ]
        rows = [
            [method, *(summary.weight(method, p, name) for p in points)]
            for method in summary.methods
        ]
        parts += [
            f"## Weight of the set '{markdown_text(name)}'",
            f"It starts at {start}. "
            + (
                "Its scores are random: it should fall."
                if objective is None
                else f"It should grow with the weight of the criterion {markdown_text(objective)}."
            ),
            Table([left("method"), *numbers(head)], rows).to_markdown(),
        ]
    return parts


def _speed(summary: Summary) -> list[str]:
    rows = []
    for method in WEIGHTED_CHEBYSHEV:
        for baseline in summary.methods:
            found = time_to_match(summary, method, baseline) if method in summary.methods else []
            if baseline == method or not found:
                continue
            row: list[Cell] = [method, baseline]
            for key in ("seconds", "n_gradients"):
                ratios = [each[key] / max(each[f"baseline_{key}"], 1e-9) for each in found]
                middle = float(np.median(ratios))
                row.append(f"{middle:.3g}" if math.isfinite(middle) else "never")
            row.append(f"{sum(math.isfinite(e['seconds']) for e in found)} of {len(found)}")
            rows.append(row)
    if not rows:
        return []
    columns = [left("method"), left("baseline")]
    columns += numbers(["seconds", "gradient evaluations", "reached"])
    return [
        "## How soon a method is as good as a baseline ever gets",
        "Good is max λ_s f_s after re-solving, of each preference and seed; what the method took "
        "over what the baseline took to its best, the median.",
        Table(columns, rows).to_markdown(),
    ]


def _points(summary: Summary, preference: Preference) -> list[str]:
    columns = [left("method")]
    columns += numbers([f"{name}: own → re-solved" for name in summary.objectives])
    columns += numbers(["max λf re-solved", "Σ λf re-solved"])
    columns += numbers([f"weight of {name}" for name in summary.sets])
    rows = []
    for method in summary.methods:
        cells = summary.of(method, preference)
        if not cells:
            continue
        own, resolved = (np.array([getattr(c, k) for c in cells]) for k in ("own", "resolved"))
        row: list[Cell] = [method]
        for column in range(len(summary.objectives)):
            row.append(f"{own[:, column].mean():.3f} → {Spread.of(resolved[:, column].tolist())}")
        scaled = resolved * preference.array()
        row += [Spread.of(scaled.max(1).tolist()), Spread.of(scaled.sum(1).tolist())]
        row += [summary.weight(method, preference, name) for name in summary.sets]
        rows.append(row)
    return [
        f"## Preference {markdown_text(summary.title(preference))}",
        f"λ: {markdown_text(preference_text(preference))}.",
        Table(columns, rows).to_markdown(),
    ]


def _spent(summary: Summary) -> list[str]:
    """What each method spent, and the lower-level gap: how far from feasible it stopped."""
    columns = [left("method"), *numbers(["cells", "failed"])]
    columns += numbers(["steps", "gradient evaluations"], ".0f")
    columns += [Column("seconds", ".2f")]
    columns += numbers(["‖∇_y g‖ where it stopped", "largest after re-solving", "‖K‖"], ".1e")
    rows: list[list[Cell]] = []
    for method in summary.methods:
        cells = [cell for cell in summary.done if cell.method == method]
        residuals = [r for c in cells if c.kkt and (r := c.kkt["residual"]) is not None]
        row: list[Cell] = [method, len(cells)]
        row += [sum(cell.method == method for cell in summary.failed)]
        row += [float(np.mean([getattr(c, k) for c in cells])) for k in _MEANS]
        row += [float(np.median([cell.lower_gradient_norm for cell in cells]))]
        row += [float(np.max([cell.lower_gradient_norm_resolved for cell in cells]))]
        rows.append([*row, float(np.median(residuals)) if residuals else "not known"])
    return [
        "## What it took, and where it stopped",
        "Means over cells; the lower level's gradient and the KKT residual are medians.",
        Table(columns, rows).to_markdown(),
    ]


_MEANS = ("steps", "n_gradients", "seconds")


def _failures(summary: Summary) -> list[str]:
    lines = []
    for cell in summary.failed:
        point = "any preference" if cell.preference is None else summary.title(cell.preference)
        where = f"{cell.method}, seed {cell.seed}, {markdown_text(point)}"
        lines.append(f"- {where}: {markdown_text(str(cell.reason))}")
    return lines
