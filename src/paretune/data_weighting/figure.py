"""Figures of `paretune weigh`: radars, convergence, weights over time, spread over seeds.

The look is that of `paretune.report.figures`, and each method has one colour and marker throughout.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import NullFormatter

from paretune.moo.bilevel import METHODS
from paretune.report import figures
from paretune.report.labels import Array

if TYPE_CHECKING:
    from paretune.data_weighting.summary import Summary
    from paretune.data_weighting.trial import CellResult

_COLUMNS = 4  # panels in a row
_TICKS = 40  # points of a mean curve


def draw_weighing(summary: "Summary", folder: Path) -> None:
    """Write all figures of a run into `folder`, as far as there are cells to draw.

    ``weigh_methods.png``: 1/loss of all methods, a radar a preference (Figure 6b of the paper);
    ``weigh_preferences.png``: of all preferences, a radar a method (Figure 6a);
    ``weigh_convergence.png``: max λ_s f_s against seconds, steps and gradient evaluations, own and
    re-solved; ``weigh_weights.png``: the sets' weights along the way; ``weigh_spread.png``: the
    losses of each seed.
    """
    with rc_context(figures.STYLE):
        if len(summary.objectives) >= 3:
            figures.save_figure(_radars_of_methods(summary), folder / "weigh_methods.png")
            figures.save_figure(_radars_of_preferences(summary), folder / "weigh_preferences.png")
        figures.save_figure(_convergence(summary), folder / "weigh_convergence.png")
        if summary.sets:
            figures.save_figure(_weights(summary), folder / "weigh_weights.png")
        figures.save_figure(_spread(summary), folder / "weigh_spread.png")


def _look(method: str) -> dict[str, Any]:
    return figures.line_looks(len(METHODS))[list(METHODS).index(method)]


def _mean(cells: Sequence["CellResult"]) -> Array:
    return np.mean([cell.resolved for cell in cells], axis=0)  # type: ignore[no-any-return]


def _grid(count: int, size: tuple[float, float]) -> tuple[Figure, int, int]:
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.8), layout="constrained")
    return figure, rows, columns


def _legend(figure: Figure, looks: Mapping[str, Mapping[str, Any]], title: str = "") -> None:
    handles = [Line2D([], [], label=label, lw=1.6, ms=5, **look) for label, look in looks.items()]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=figures.legend_columns(len(handles), 5),
        frameon=False,
        title=title or None,
    )


def _radar(
    axes: PolarAxes,
    lines: Sequence[tuple[Array, Mapping[str, Any]]],
    scale: tuple[Array, Array],
    objectives: Sequence[str],
    title: str,
) -> None:
    """1/loss with its worst value at 0.25 of the radius and its best at the rim."""
    low, span = scale
    angles = np.linspace(0, 2 * math.pi, len(objectives), endpoint=False)
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    for losses, look in lines:
        radii = 0.25 + 0.75 * (1 / losses - low) / span
        closed = ([*angles, angles[0]], [*radii, radii[0]])
        axes.plot(*closed, lw=1.4, ms=4, alpha=0.85, clip_on=False, **look)
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0.25, 0.5, 0.75, 1], [])
    axes.spines["polar"].set_visible(False)
    digits = figures.decimals(span)
    ends = zip(objectives, low, low + span, strict=True)
    labels = [f"{o}\n{a:.{digits}f} to {b:.{digits}f}" for o, a, b in ends]
    figures.label_spokes(axes, angles.tolist(), labels)
    axes.tick_params(axis="x", pad=6, labelsize=8)
    axes.set_title(title, fontsize=10.5, pad=14)


def _radars(
    panels: Mapping[str, Sequence[tuple[Array, Mapping[str, Any]]]],
    objectives: Sequence[str],
    looks: Mapping[str, Mapping[str, Any]],
) -> Figure:
    figure, rows, columns = _grid(len(panels), (4.9, 3.3))
    drawn = np.array([losses for lines in panels.values() for losses, _ in lines])
    scale = figures.value_range(1 / drawn)
    for number, (title, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number, projection="polar")
        assert isinstance(axes, PolarAxes)
        _radar(axes, lines, scale, objectives, title)
    note = "1 / re-solved loss, mean over seeds; outward is better, inner ring worst and rim best"
    _legend(figure, looks, note)
    return figure


def _radars_of_methods(summary: "Summary") -> Figure:
    panels = {
        summary.title(preference): [
            (_mean(cells), _look(method))
            for method in summary.methods
            if (cells := summary.of(method, preference))
        ]
        for preference in summary.preferences
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    return _radars(panels, summary.objectives, {m: _look(m) for m in summary.methods})


def _radars_of_preferences(summary: "Summary") -> Figure:
    labels = [summary.title(preference) for preference in summary.preferences]
    looks = dict(zip(labels, figures.line_looks(len(labels)), strict=True))
    panels = {
        method: [
            (_mean(cells), looks[summary.title(preference)])
            for preference in summary.preferences
            if (cells := summary.of(method, preference))
        ]
        for method in summary.methods
    }
    return _radars(panels, summary.objectives, looks)


def _convergence(summary: "Summary") -> Figure:
    """Means over preferences and seeds of max λ_s f_s, relative to the start re-solved."""
    figure = Figure(figsize=(12, 7.2), layout="constrained")
    grid = figure.subplots(2, 3, sharey="row")
    axis_names = {
        "seconds": "seconds",
        "step": "steps",
        "n_gradients": "gradient evaluations",
    }
    kinds = {"own": "own losses", "resolved": "after re-solving the lower level"}
    for row, (kind, title) in zip(grid, kinds.items(), strict=True):
        for axes, (column, name) in zip(row, axis_names.items(), strict=True):
            for method in summary.methods:
                _mean_curve(axes, summary, method, column, kind)
            axes.set_xscale("log")
            figures.plain_ticks(axes.xaxis)
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(name)
            axes.axhline(1, color="#999999", lw=0.9)
        row[0].set_ylabel(f"max λf / start, {title}")
    # Methods that leave the lower level unsolved start high: show what the end looks like.
    _limit(grid[0], summary, "own")
    _limit(grid[1], summary, "resolved")
    _legend(
        figure,
        {method: _look(method) for method in summary.methods},
        "means over preferences and seeds (lower is better); 1 is the re-solved start",
    )
    return figure


def _curves(summary: "Summary", method: str, column: str, kind: str) -> list[tuple[Array, Array]]:
    found = []
    for preference in summary.preferences:
        for cell in summary.of(method, preference):
            if cell.curve is None:
                continue
            scaled = np.array(getattr(cell.curve, kind)) * preference.array()
            start = (np.array(cell.curve.resolved[0]) * preference.array()).max()
            found.append((np.array(getattr(cell.curve, column), float), scaled.max(1) / start))
    return found


def _mean_curve(axes: Axes, summary: "Summary", method: str, column: str, kind: str) -> None:
    curves = _curves(summary, method, column, kind)
    first = max((x[min(1, len(x) - 1)] for x, _ in curves), default=0.0)
    last = float(np.median([x[-1] for x, _ in curves])) if curves else 0.0
    if last <= 0:
        return
    marks = np.geomspace(max(first, last * 1e-3), last, _TICKS)
    values = np.mean([np.interp(marks, x, y) for x, y in curves], axis=0)
    axes.plot(marks, values, lw=1.5, ms=4, markevery=8, **_look(method))


def _limit(row: Sequence[Axes], summary: "Summary", kind: str) -> None:
    values = np.concatenate(
        [y for method in summary.methods for _, y in _curves(summary, method, "step", kind)]
    )
    low, high = float(values.min()), float(np.quantile(values, 0.9))
    margin = 0.05 * (high - low) or 0.05
    for axes in row:
        axes.set_ylim(low - margin, max(high, 1.0) + margin)


def _weights(summary: "Summary") -> Figure:
    """Panels: a row a method, a column a preference; a line a set, with the range over seeds."""
    methods, points = summary.methods, summary.preferences
    figure = Figure(
        figsize=(1.9 * len(points) + 0.8, 1.35 * len(methods) + 1.0), layout="constrained"
    )
    grid = figure.subplots(len(methods), len(points), sharex="row", sharey=True, squeeze=False)
    looks = {name: {"color": figures.COLOURS[k]} for k, name in enumerate(summary.sets)}
    for row, method in zip(grid, methods, strict=True):
        for axes, preference in zip(row, points, strict=True):
            curves = [cell.curve for cell in summary.of(method, preference) if cell.curve]
            if curves:
                _weight_lines(axes, curves, looks)
            axes.set_ylim(-0.02, 1.02)
            axes.tick_params(labelsize=7)
        row[0].set_ylabel(method, fontsize=9)
    for axes, preference in zip(grid[0], points, strict=True):
        axes.set_title(summary.title(preference), fontsize=8.5)
    note = "weights against gradient evaluations: mean over seeds, band their range"
    _legend(figure, looks, note)
    return figure


def _weight_lines(
    axes: Axes, curves: Sequence[Any], looks: Mapping[str, Mapping[str, Any]]
) -> None:
    ends = [curve.n_gradients[-1] for curve in curves]
    marks = np.geomspace(max(curves[0].n_gradients[min(1, len(ends) - 1)], 1), min(ends), _TICKS)
    marks = np.unique(np.maximum(marks, 1))
    for place, look in enumerate(looks.values()):
        lines = np.array(
            [
                np.interp(marks, curve.n_gradients, np.array(curve.weights)[:, place])
                for curve in curves
            ]
        )
        axes.plot(marks, lines.mean(0), lw=1.3, **look)
        axes.fill_between(marks, lines.min(0), lines.max(0), alpha=0.2, lw=0, **look)
    axes.set_xscale("log")
    figures.plain_ticks(axes.xaxis)
    axes.xaxis.set_minor_formatter(NullFormatter())


def _spread(summary: "Summary") -> Figure:
    """A panel a preference: per objective the re-solved loss of each method and seed."""
    figure, rows, columns = _grid(len(summary.preferences), (4.2, 3.0))
    width = 0.8 / len(summary.methods)
    for number, preference in enumerate(summary.preferences, start=1):
        axes = figure.add_subplot(rows, columns, number)
        for place, method in enumerate(summary.methods):
            losses = np.array([cell.resolved for cell in summary.of(method, preference)])
            if not losses.size:
                continue
            look = {key: value for key, value in _look(method).items() if key != "ls"}
            offset = (place + 0.5) * width - 0.4
            x = np.tile(np.arange(losses.shape[1]) + offset, (len(losses), 1))
            axes.plot(x.ravel(), losses.ravel(), ls="", ms=3.2, alpha=0.75, **look)
        labels = [figures.wrapped(name) for name in summary.objectives]
        axes.set_xticks(range(len(labels)), labels, fontsize=8)
        axes.grid(visible=False, axis="x")
        axes.set_title(summary.title(preference), fontsize=10)
        if number % columns == 1 or columns == 1:
            axes.set_ylabel("re-solved loss")
    looks = {method: {**_look(method), "ls": ""} for method in summary.methods}
    _legend(figure, looks, "one mark a seed (lower is better)")
    return figure
