"""The summary of a run as Markdown: what ``weigh.md`` holds."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from paretune.data_weighting.summary import (
    WEIGHTED_CHEBYSHEV,
    Array,
    Spread,
    Summary,
    shortfall,
    time_to_match,
)
from paretune.moo.preference import Preference


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
        lines += _lower_level_gap_table(summary)
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
        "radar polygon of 1/loss; area ratios S_wc / S_method, above 1 where that of the "
        "weighted-Chebyshev method is larger.",
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
    for method in WEIGHTED_CHEBYSHEV:
        for baseline in summary.methods:
            found = time_to_match(summary, method, baseline) if method in summary.methods else []
            if baseline == method or not found:
                continue
            row: list[object] = [method, baseline]
            for key in ("seconds", "n_gradients"):
                ratios = [each[key] / max(each[f"baseline_{key}"], 1e-9) for each in found]
                middle = float(np.median(ratios))
                row.append(f"{middle:.3g}" if math.isfinite(middle) else "never")
            row.append(f"{sum(math.isfinite(e['seconds']) for e in found)} of {len(found)}")
            rows.append(row)
    if not rows:
        return []
    return [
        "## How soon a method is as good as a baseline ever gets",
        "",
        "Good is max λ_s f_s after re-solving, of each preference and seed; what the method took "
        "over what the baseline took to its best, the median.",
        "",
        *_table(["method", "baseline", "seconds", "gradient evaluations", "reached"], rows),
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


def _lower_level_gap_table(summary: Summary) -> list[str]:
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
