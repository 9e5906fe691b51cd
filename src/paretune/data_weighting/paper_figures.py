"""Figures of a run as the WC-Penalty paper has them: each objective by steps, radii from 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes

from paretune.data_weighting.summary import WEIGHTED_CHEBYSHEV, Array, Summary
from paretune.moo.preference import Preference
from paretune.report import figures


@dataclass(frozen=True)
class ObjectiveCurve:
    """One line of Figures 11b and 14b: an objective's loss against steps, over seeds.

    Attributes:
        objective: by name.
        steps: where the seeds have all recorded, shape (T,).
        mean, standard_error: of the loss over seeds, shape (T,); the error of one seed is 0.
    """

    objective: str
    steps: tuple[float, ...]
    mean: tuple[float, ...]
    standard_error: tuple[float, ...]


def draw_paper_figures(summary: Summary, folder: Path) -> None:
    """Write into `folder`, as far as there are cells to draw:

    ``weigh_objectives.png``: each objective against steps (Figures 11b, 14b);
    ``weigh_radius.png``: 1/loss as a radius from 0, on one scale for all axes (Figures 6, 7, 19).
    """
    with rc_context(figures.STYLE):
        figure = _objectives(summary)
        if figure is not None:
            figures.save_figure(figure, folder / "weigh_objectives.png")
        if len(summary.objectives) >= 3:
            figures.save_figure(_radius(summary), folder / "weigh_radius.png")


def _shown_method(summary: Summary) -> str | None:
    """The method whose curves are drawn."""
    return next((name for name in WEIGHTED_CHEBYSHEV if name in summary.methods), None)


def _objectives(summary: Summary) -> Figure | None:
    """A panel a preference: the mean over seeds of each objective, with its standard error."""
    method = _shown_method(summary)
    panels = {
        summary.title(p): curves
        for p in summary.preferences
        if method is not None and (curves := objectives_against_steps(summary, method, p))
    }
    if not panels:
        return None
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, (title, curves) in zip(grid, panels.items(), strict=False):
        for place, curve in enumerate(curves):
            colour = figures.COLOURS[place % len(figures.COLOURS)]
            mean, error = np.array(curve.mean), np.array(curve.standard_error)
            axes.plot(curve.steps, mean, lw=1.3, color=colour, label=curve.objective)
            axes.fill_between(curve.steps, mean - error, mean + error, color=colour, alpha=0.2)
        axes.set_title(title, fontsize=9.5)
        axes.set_xlabel("steps")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    grid[0].set_ylabel(f"loss, {method}")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _radius(summary: Summary) -> Figure:
    """A panel a method: its preferences, as the paper draws them, all up to one radius."""
    rim = 1.05 * max(1 / np.min(_losses(summary, m, p)) for m, p in _drawn(summary))
    count = len(summary.methods)
    columns = min(4, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4.4 * columns, 3.7 * rows + 0.8), layout="constrained")
    titles = [summary.title(preference) for preference in summary.preferences]
    looks = dict(zip(titles, figures.line_looks(len(titles)), strict=True))
    angles = np.linspace(0, 2 * math.pi, len(summary.objectives), endpoint=False)
    for number, method in enumerate(summary.methods, start=1):
        axes = figure.add_subplot(rows, columns, number, projection="polar")
        assert isinstance(axes, PolarAxes)
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        for preference in (p for m, p in _drawn(summary) if m == method):
            radii: Array = 1 / _losses(summary, method, preference)
            look = looks[summary.title(preference)]
            axes.plot([*angles, angles[0]], [*radii, radii[0]], lw=1.4, ms=4, alpha=0.85, **look)
        axes.set_ylim(0, rim)
        labels = [figures.wrapped(name) for name in summary.objectives]
        figures.label_spokes(axes, angles.tolist(), labels)
        axes.tick_params(labelsize=8)
        axes.set_title(method, fontsize=10.5, pad=14)
    handles = [Line2D([], [], label=title, lw=1.6, ms=5, **look) for title, look in looks.items()]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=figures.legend_columns(len(handles), 5),
        frameon=False,
        title="1 / re-solved loss, mean over seeds, from 0 on one scale",
    )
    return figure


def _drawn(summary: Summary) -> list[tuple[str, Preference]]:
    """Methods and preferences that have a cell."""
    pairs = ((m, p) for m in summary.methods for p in summary.preferences)
    return [pair for pair in pairs if summary.of(*pair)]


def _losses(summary: Summary, method: str, preference: Preference) -> Array:
    """Means over seeds, after re-solving, (S,)."""
    losses: Array = np.mean([c.resolved for c in summary.of(method, preference)], axis=0)
    return losses


def objectives_against_steps(
    summary: Summary, method: str, preference: Preference, kind: str = "own"
) -> list[ObjectiveCurve]:
    """The loss of each objective along the way, "own" or "resolved"; empty without curves.

    Seeds that recorded at other steps are interpolated at those of the first one, as far as all go.
    """
    curves = [cell.curve for cell in summary.of(method, preference) if cell.curve is not None]
    if not curves:
        return []
    last = min(curve.step[-1] for curve in curves)
    steps = np.array([step for step in curves[0].step if step <= last], dtype=float)
    found = []
    for place, objective in enumerate(summary.objectives):
        rows = np.array(
            [np.interp(steps, c.step, np.array(getattr(c, kind))[:, place]) for c in curves]
        )
        spread = rows.std(0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else 0 * steps
        columns = (tuple(map(float, values)) for values in (steps, rows.mean(0), spread))
        found.append(ObjectiveCurve(objective, *columns))
    return found
