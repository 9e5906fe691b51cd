"""What happened step by step while a point was trained: as numbers, and as a figure."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from paretune.report.figures import COLOURS, STYLE, legend_columns, plain_ticks, save_figure

_FEW_STEPS = 60  # as many can each have a marker
_MGDA, _CHEBYSHEV = "clamp/mgda_term", "clamp/chebyshev_term"


@dataclass(frozen=True)
class Curve:
    """One quantity over optimiser steps; `objective` says whose it is, if it is one's."""

    label: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    objective: str | None = None


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis.

    Attributes:
        note: what to know when reading it, in a sentence.
        limits: of the axis, where the quantity has some by nature.
        logarithmic: all values are positive and are best seen on a logarithmic axis.
        unit: what stands behind the numbers.
    """

    title: str
    note: str
    curves: tuple[Curve, ...]
    limits: tuple[float, float] | None = None
    logarithmic: bool = False
    unit: str = ""


def panels(log: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> list[Panel]:
    """The diagnostics that a training log has; those it has not are left out.

    Args:
        log: Rows of ``log.jsonl``, with ``step`` and any of the trainer's per-step keys. Rows and
            keys of other kinds are passed over.
        objectives: Names, in the order of their colours.
    """

    def each(pattern: str) -> list[Curve | None]:
        return [_curve(log, pattern.format(name), name, name) for name in objectives]

    pairs = [(a, b) for i, a in enumerate(objectives) for b in objectives[i + 1 :]]
    cosines = [_curve(log, f"cosine/{a}|{b}", f"{a} | {b}") for a, b in pairs]
    terms = [
        _curve(log, _MGDA, "descent: ‖G(p∘λ*)‖²"),
        _curve(log, _CHEBYSHEV, "preference: μ λ*ᵀ(p∘F)"),
    ]
    if terms[1] is None or not any(terms[1].values):
        terms = []  # of another method, which has no such term
    found = [
        _panel("Training loss", "Of the step's batch, per objective.", each("{}/loss")),
        _panel(
            "Multipliers λ*",
            "The solution of Eq. (6); 0 or 1 is a corner of the simplex.",
            each("lambda/{}"),
            limits=(-0.05, 1.05),
        ),
        _panel(
            "Both terms of Eq. (6)",
            "μ shifts the balance between them.",
            terms,
            positive=True,
        ),
        _panel(
            "Gradient cosines",
            "Below zero the objectives pull apart.",
            cosines,
            limits=(-1.05, 1.05),
        ),
        _panel("Gradient norms", "Before weighting.", each("gradient_norm/{}"), positive=True),
        _panel(
            "Solver's share of the step",
            "Time spent on the quadratic program.",
            [_curve(log, "time/solver_share", "solver", scale=100)],
            unit="%",
        ),
    ]
    return [panel for panel in found if panel is not None]


def draw_steps(
    found: Sequence[Panel],
    objectives: Sequence[str],
    paths: Sequence[str | os.PathLike[str]],
    *,
    title: str | None = None,
) -> None:
    """Draw the panels side by side, once, into each of `paths` (by suffix: png, svg, pdf)."""
    colours = dict(zip(objectives, cycle(COLOURS), strict=False))
    rows = math.ceil(len(found) / 2)
    with rc_context(STYLE):
        figure = Figure(figsize=(10.0, 0.9 + 2.3 * rows), layout="constrained")
        for index, panel in enumerate(found):
            _draw_panel(figure.add_subplot(rows, 2, index + 1), panel, colours)
        handles = [Line2D([], [], color=colour, lw=1.6) for colour in colours.values()]
        figure.legend(
            handles,
            list(colours),
            loc="outside lower center",
            ncols=legend_columns(len(handles), 6),
            frameon=False,
        )
        if title:
            figure.suptitle(title, fontsize=12)
        for path in paths:
            save_figure(figure, path)


def _draw_panel(axes: Axes, panel: Panel, colours: Mapping[str, str]) -> None:
    # Curves of no objective take colours that no objective has, as far as there are any.
    start = len(colours) % len(COLOURS)
    spare = [*COLOURS[start:], *COLOURS[:start]]
    looks = cycle([(colour, style) for style in ("-", "--", ":") for colour in spare])
    for curve in panel.curves:
        if curve.objective is None:
            colour, style = next(looks)
        else:
            colour, style = colours[curve.objective], "-"
        axes.plot(
            curve.steps,
            curve.values,
            lw=1.3,
            color=colour,
            ls=style,
            label=curve.label,
            marker="o" if len(curve.steps) <= _FEW_STEPS else "",
            ms=3,
        )
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(panel.unit)
    if panel.limits is not None:
        axes.set_ylim(panel.limits)
    if panel.logarithmic:
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    if len(panel.curves) > 3 and panel.curves[0].objective is None:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.03), frameon=False)
    elif len(panel.curves) > 1 and panel.curves[0].objective is None:
        axes.legend(fontsize=8, loc="best", framealpha=0.8)


def _curve(
    log: Sequence[Mapping[str, Any]],
    key: str,
    label: str,
    objective: str | None = None,
    scale: float = 1.0,
) -> Curve | None:
    rows = [row for row in log if isinstance(row.get(key), int | float) and "step" in row]
    if not rows:
        return None
    steps = tuple(int(row["step"]) for row in rows)
    return Curve(label, steps, tuple(scale * float(row[key]) for row in rows), objective)


def _panel(
    title: str,
    note: str,
    curves: Sequence[Curve | None],
    *,
    limits: tuple[float, float] | None = None,
    positive: bool = False,
    unit: str = "",
) -> Panel | None:
    """The panel of the curves that there are; `positive` quantities get a logarithmic axis."""
    found = tuple(curve for curve in curves if curve is not None)
    if not found:
        return None
    values = [value for curve in found for value in curve.values if math.isfinite(value)]
    # A logarithmic axis where it helps: over more than a decade.
    spread = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
    return Panel(title, note, found, limits, positive and spread, unit)
