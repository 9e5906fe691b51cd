"""Figures of fronts and of training runs, for screens and for print.

Every function writes one file whose suffix names the format (``.png``, ``.pdf``, ``.svg``) and
uses `matplotlib.figure.Figure` alone: no window, no pyplot state, safe in any thread.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import LogFormatter

from paretune.errors import InputError
from paretune.files import move, partial_name, sync
from paretune.moo.calibration import Calibration
from paretune.report.labels import Array, Label, clean_texts, place_labels
from paretune.results.dial import dial_grid, dial_rows

# Okabe and Ito's colours, which the common colour-vision deficiencies keep apart; every colour
# also has its own marker, so that nothing hangs on colour alone.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#882255", "#999933", "#6A3D9A", "#8C564B"),  # further ones: Tol's, and two of ColorBrewer's
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "8")
MOST_INCHES = 150  # of a figure's height: matplotlib draws no more than 2^16 pixels
_MOST_LABELS = 60  # more would cover the points, or the page
_GREY, _DARK = "#666666", "#222222"
STYLE: Any = {
    "font.size": 10,
    "axes.labelsize": 10.5,
    "axes.titlesize": 11,
    "legend.fontsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # text stays text, as publishers ask
    "text.parse_math": False,  # a '$' in a name is a dollar
}


@dataclass(frozen=True)
class PlotPoint:
    """A point of a front: its value per objective, and what to write beside it."""

    values: Mapping[str, float]
    label: str


def draw_front(
    series: Mapping[str, Sequence[PlotPoint]],
    objectives: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    reference: PlotPoint | None = None,
    quantity: str = "test loss",
    lower_is_better: bool = True,
    curves: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
) -> None:
    """Draw one or several fronts over the same objectives.

    Two objectives are the two axes: every point is labelled, a line joins the points of a series
    that no other point of it dominates, and dominated points are hollow. Three and more are drawn
    as parallel coordinates and as a radar (of 1/value where lower is better, so that larger is
    better), one row a series, with the same colour for the same label in all rows.

    Args:
        series: Points under the name of their front (a method, a seed, a run).
        objectives: Names, in the order of the axes; at least two.
        reference: A point to compare with, such as the base model.
        curves: Of two objectives: values along lines that are dashed, under their names; a dot at
            every quarter.
        quantity: What the values are; an axis reads "<quantity> of <objective> (lower is better)".

    Raises:
        InputError: for fewer than two objectives, or no point with finite values.
    """
    if len(objectives) < 2:
        raise InputError("A front has at least two objectives; give the names of all of them.")
    finite, names = {}, {}
    for name, points in series.items():
        finite[name] = [p for p in points if all(math.isfinite(p.values[o]) for o in objectives)]
        lost = len(points) - len(finite[name])
        names[name] = f"{name} ({lost} of {len(points)} points not finite)" if lost else name
    if not any(finite.values()):
        raise InputError("There is no point with finite values to draw.")
    fronts = {names[name]: points for name, points in finite.items()}
    with rc_context(STYLE):
        if len(objectives) == 2:
            paths = curves or {}
            figure = _draw_plane(fronts, objectives, reference, quantity, lower_is_better, paths)
        else:
            figure = _draw_many(fronts, objectives, reference, quantity, lower_is_better)
        if title:
            figure.suptitle(title, fontsize=12)
        save_figure(figure, path)


def dial_curve(
    calibration: Calibration, objectives: Sequence[str]
) -> dict[str, list[dict[str, float]]]:
    """The validation losses that p gives from end to end, as a curve of `draw_front`."""
    if len(objectives) != 2:
        return {}
    rows = dial_rows(calibration, dial_grid(2, 101))
    return {
        "validation, p = 0, ¼, ½, ¾, 1": [
            dict(zip(objectives, row.losses, strict=True)) for row in rows
        ]
    }


def _draw_plane(
    series: Mapping[str, Sequence[PlotPoint]],
    objectives: Sequence[str],
    reference: PlotPoint | None,
    quantity: str,
    lower_is_better: bool,
    curves: Mapping[str, Sequence[Mapping[str, float]]],
) -> Figure:
    figure = Figure(figsize=(6.4, 5.0), layout="constrained")
    axes = figure.add_subplot()
    for name, along in curves.items():
        lines = [[values[o] for values in along] for o in objectives]
        every = max(1, (len(along) - 1) // 4)
        axes.plot(*lines, color=_GREY, lw=1.2, ls="--", marker=".", markevery=every, label=name)
    sign = 1 if lower_is_better else -1
    labels = []
    for (name, points), colour, marker in zip(
        series.items(), cycle(COLOURS), cycle(MARKERS), strict=False
    ):
        xy = np.array([[p.values[o] for o in objectives] for p in points]).reshape(-1, 2)
        best = _nondominated(sign * xy)
        axes.plot(xy[best, 0], xy[best, 1], color=colour, lw=1.2, alpha=0.6)
        faces = [colour if i in set(best) else "white" for i in range(len(points))]
        axes.scatter(
            xy[:, 0], xy[:, 1], s=42, marker=marker, c=faces, edgecolors=colour, lw=1.3, zorder=3
        )
        axes.plot([], [], color=colour, marker=marker, lw=1.2, label=name)
        labels += [(x, y, p.label, colour) for (x, y), p in zip(xy, points, strict=True)]
    if reference is not None:
        x, y = (reference.values[o] for o in objectives)
        axes.scatter([x], [y], s=60, marker="*", color=_GREY, zorder=3)
        labels.append((x, y, reference.label, _GREY))
    better = "lower" if lower_is_better else "higher"
    axes.set_xlabel(f"{quantity} of {objectives[0]} ({better} is better)")
    axes.set_ylabel(f"{quantity} of {objectives[1]} ({better} is better)")
    axes.margins(0.12)
    handles, legend_names = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], ls=""))
    merged = _merged(labels)
    every = math.ceil(len(merged) / _MOST_LABELS)
    some = f", at one point in {every}" if every > 1 else ""
    legend_names.append(f"labels: p = ({', '.join(objectives)}){some}")
    figure.legend(
        handles,
        legend_names,
        loc="outside lower center",
        ncols=legend_columns(len(handles), 4),
        frameon=False,
    )
    place_labels(figure, axes, merged[:-1:every] + merged[-1:])
    return figure


def _merged(labels: Sequence[Label]) -> list[Label]:
    """One neutral label where several series have the same point under the same label."""
    colours: dict[tuple[float, float, str], set[str]] = {}
    for x, y, text, colour in labels:
        colours.setdefault((x, y, text), set()).add(colour)
    return [(*key, owners.pop() if len(owners) == 1 else _DARK) for key, owners in colours.items()]


def _nondominated(xy: Array) -> list[int]:
    """Rows that no other row dominates (smaller is better), from left to right."""
    kept: list[int] = []
    for i in np.lexsort((xy[:, 1], xy[:, 0])):
        if not kept or xy[i, 1] < xy[kept[-1], 1]:
            kept.append(int(i))
    return kept


def _draw_many(
    series: Mapping[str, Sequence[PlotPoint]],
    objectives: Sequence[str],
    reference: PlotPoint | None,
    quantity: str,
    lower_is_better: bool,
) -> Figure:
    rows = len(series)
    figure = Figure(figsize=(10.5, min(0.7 + 3.9 * rows, MOST_INCHES)), layout="constrained")
    extra = [] if reference is None else [reference]
    drawn = [point for points in series.values() for point in [*points, *extra]]
    values = np.array([[p.values[o] for o in objectives] for p in drawn])
    labels = list(dict.fromkeys(p.label for points in series.values() for p in points))
    looks = dict(zip(labels, line_looks(len(labels)), strict=True))
    if reference is not None:
        looks[reference.label] = {"color": _GREY, "marker": "*", "ls": "--"}
    for row, (name, points) in enumerate(series.items()):
        lines = [([p.values[o] for o in objectives], looks[p.label]) for p in [*points, *extra]]
        parallel = figure.add_subplot(rows, 2, 2 * row + 1)
        _parallel_coordinates(parallel, lines, values, objectives, quantity, lower_is_better)
        parallel.set_title(name, loc="left", fontweight="bold")
        radar = figure.add_subplot(rows, 2, 2 * row + 2, projection="polar")
        assert isinstance(radar, PolarAxes)
        _radar(radar, lines, values, objectives, quantity, lower_is_better)
    shown = list(looks.items())
    shown = shown if len(shown) <= _MOST_LABELS else shown[:: math.ceil(len(shown) / _MOST_LABELS)]
    handles = [Line2D([], [], label=label, lw=1.6, ms=5, **look) for label, look in shown]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=legend_columns(len(handles), 6 if len(objectives) < 5 else 4),
        frameon=False,
        title=f"p = ({', '.join(objectives)})",
    )
    return figure


def legend_columns(count: int, most: int) -> int:
    """Columns of a legend whose rows are as even as can be."""
    return math.ceil(count / math.ceil(count / most))


def label_spokes(axes: PolarAxes, angles: Sequence[float], labels: Sequence[str]) -> None:
    """Name a radar's axes beyond its rim: beside it those on the right and on the left.

    Args:
        angles: Clockwise from the top, in radians.
    """
    axes.set_xticks(angles, labels)
    for text, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = round(math.sin(angle), 1)
        text.set_horizontalalignment("center" if side == 0 else "left" if side > 0 else "right")


def plain_ticks(axis: Axis) -> None:
    """Write the ticks of a logarithmic axis as numbers: by default they are formulas."""
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def line_looks(count: int) -> list[dict[str, Any]]:
    """Colour, marker and line style of each of `count` lines."""
    styles = [style for style in ("-", "--", ":") for _ in COLOURS]
    return [
        {"color": colour, "marker": marker, "ls": style}
        for colour, marker, style in islice(
            zip(cycle(COLOURS), cycle(MARKERS), cycle(styles), strict=False), count
        )
    ]


_Lines = Sequence[tuple[Sequence[float], Mapping[str, Any]]]


def _parallel_coordinates(
    axes: Axes,
    lines: _Lines,
    values: Array,
    objectives: Sequence[str],
    quantity: str,
    lower_is_better: bool,
) -> None:
    """One vertical scale an objective, from the smallest to the largest of `values`."""
    low, span = value_range(values)
    for line, look in lines:
        axes.plot((np.array(line) - low) / span, lw=1.6, ms=5, clip_on=False, zorder=3, **look)
    axes.set_xlim(-0.15, len(objectives) - 0.65)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xticks(range(len(objectives)), [wrapped(name) for name in objectives])
    axes.set_yticks([])
    axes.grid(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="x", length=0)
    digits = decimals(span)
    for column in range(len(objectives)):
        axes.axvline(column, color="#999999", lw=0.9, zorder=1)
        for height in (0, 0.25, 0.5, 0.75, 1):
            value = low[column] + height * span[column]
            axes.annotate(
                f"{value:.{digits}f}",
                (column, height),
                xytext=(-5, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=8,
                color="#555555",
                zorder=4,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
    better = "lower" if lower_is_better else "higher"
    axes.set_xlabel(f"{quantity} ({better} is better; own scale for each objective)")


def _radar(
    axes: PolarAxes,
    lines: _Lines,
    values: Array,
    objectives: Sequence[str],
    quantity: str,
    lower_is_better: bool,
) -> None:
    """Spokes scaled so that the worst of `values` lies at 0.25 of the radius and the best at 1."""
    turn = 1 / values if lower_is_better else values
    low, span = value_range(turn)
    angles = np.linspace(0, 2 * math.pi, len(objectives), endpoint=False)
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    for line, look in lines:
        spokes = 1 / np.array(line) if lower_is_better else np.array(line)
        radii = 0.25 + 0.75 * (spokes - low) / span
        axes.plot([*angles, angles[0]], [*radii, radii[0]], lw=1.6, ms=5, clip_on=False, **look)
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0.25, 0.5, 0.75, 1], [])
    axes.spines["polar"].set_visible(False)
    digits = decimals(span)
    ends = zip(objectives, low, low + span, strict=True)
    labels = [f"{o}\n{a:.{digits}f} to {b:.{digits}f}" for o, a, b in ends]
    label_spokes(axes, angles.tolist(), labels)
    axes.tick_params(axis="x", pad=2)
    shown = f"1 / {quantity}" if lower_is_better else quantity
    axes.set_title(f"{shown} (outward is better: inner ring worst, rim best)", fontsize=10, y=-0.22)


def value_range(values: Array) -> tuple[Array, Array]:
    """Smallest value of each column, and its range; equal values get a range to stand in."""
    low, high = values.min(axis=0), values.max(axis=0)
    flat = high == low
    spread = np.where(flat, np.maximum(np.abs(low), 1.0) * 0.1, high - low)
    return np.where(flat, low - spread / 2, low), spread


def decimals(spans: Array) -> int:
    """Decimals that show the smallest of the ranges to two digits."""
    return int(min(6, max(0, 1 - math.floor(math.log10(spans.min())))))


def wrapped(name: str) -> str:
    """A long name on several lines."""
    return name.replace("-", "-\n").replace("_", "_\n") if len(name) > 12 else name


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    clean_texts(figure)
    figure.savefig(partial, format=path.suffix.lstrip("."), bbox_inches="tight")
    sync(partial)
    move(partial, path)
