"""Bars and radars in the look of the other figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from paretune.report import figures

_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "|||", "ooo", "---", "+++", "***")

Bars = Mapping[str, Mapping[str, float]]
"""Heights by series and group."""


def draw_bars(
    bars: Bars, path: Path, *, title: str, quantity: str, least: float | None = None
) -> Path:
    """A bar a series in every group, series told apart by colour and hatching.

    Args:
        least: What the quantity cannot be below, above 0: bars begin there, on a logarithmic scale.
    """
    groups = list(dict.fromkeys(group for heights in bars.values() for group in heights))
    width = 0.8 / max(1, len(bars))
    with rc_context(figures.STYLE):
        size = max(6.4, 0.9 + 0.34 * len(groups) * (len(bars) + 1))
        figure = Figure(figsize=(size, 4.2), layout="constrained")
        axes = figure.add_subplot()
        looks = figures.line_looks(len(bars))
        for number, (name, heights) in enumerate(bars.items()):
            places = [k for k, group in enumerate(groups) if group in heights]
            axes.bar(
                [k - 0.4 + (number + 0.5) * width for k in places],
                [heights[groups[k]] for k in places],
                width,
                color=looks[number]["color"],
                hatch=_HATCHES[number % len(_HATCHES)],
                edgecolor="white",
                lw=0.5,
                label=name,
            )
        if least is None:
            axes.axhline(0, color="#666666", lw=0.9)
        axes.set_xticks(range(len(groups)), [figures.wrapped(group) for group in groups])
        axes.grid(visible=False, axis="x")
        if least is not None:
            axes.set_yscale("log")
            axes.set_ylim(bottom=least)
            figures.plain_ticks(axes.yaxis)
        axes.set_ylabel(quantity)
        figure.suptitle(title, fontsize=12)
        figure.legend(
            loc="outside lower center",
            ncols=figures.legend_columns(len(bars), 5),
            frameon=False,
        )
        figures.save_figure(figure, path)
    return path


def draw_footprint(lines: Bars, path: Path, *, title: str, quantity: str) -> Path:
    """A closed line a series around three and more axes that share one scale.

    The dashed ring is zero: the base model.
    """
    axes_names = list(dict.fromkeys(name for values in lines.values() for name in values))
    angles = np.linspace(0, 2 * math.pi, len(axes_names), endpoint=False)
    drawn = [value for values in lines.values() for value in values.values()]
    low, high = min(0.0, *drawn), max(0.0, *drawn)
    span = (high - low) or 1.0
    with rc_context(figures.STYLE):
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        axes = figure.add_subplot(projection="polar")
        assert isinstance(axes, PolarAxes)
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        for (name, values), look in zip(lines.items(), figures.line_looks(len(lines)), strict=True):
            radii = [values.get(each, math.nan) for each in axes_names]
            ring = [*radii, radii[0]]
            axes.plot([*angles, angles[0]], ring, lw=1.6, ms=5, label=name, **look)
        turn = np.linspace(0, 2 * math.pi, 100)
        axes.plot(turn, np.zeros(100), color="#666666", lw=0.9, ls="--", label="base model")
        axes.set_ylim(low - 0.25 * span, high + 0.05 * span)
        figures.label_spokes(axes, angles.tolist(), axes_names)
        axes.set_rlabel_position(180 / len(axes_names))
        axes.tick_params(axis="y", labelsize=8)
        axes.set_title(quantity, fontsize=10, y=-0.14)
        figure.suptitle(title, fontsize=12)
        figure.legend(
            loc="outside lower center",
            ncols=figures.legend_columns(len(lines) + 1, 4),
            frameon=False,
        )
        figures.save_figure(figure, path)
    return path


def finite(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The means of what is finite, by name."""
    means = {}
    for name, each in values.items():
        kept = [value for value in each if math.isfinite(value)]
        if kept:
            means[name] = sum(kept) / len(kept)
    return means
