"""The weights of training sets along a run, and where they end."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paretune.report import figures
from paretune.results.text import preference_text

if TYPE_CHECKING:
    from paretune.data_weighting.mixture_cell import MixtureResult
    from paretune.data_weighting.mixture_page import MixtureSummary


def draw_weights(summary: "MixtureSummary", folder: Path) -> None:
    """Write ``weigh_weights.png``: a row a preference, a column a method, a line a set.

    Lines are means over seeds, within the range of the seeds; bars at the end are where
    replicates end (see `weight_intervals`).
    """
    methods, points = summary.methods, list(summary.preferences)
    with rc_context(figures.STYLE):
        size = (4.2 * len(methods), 2.6 * len(points) + 0.8)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(points), len(methods), squeeze=False, sharey=True)
        looks = figures.line_looks(len(summary.sets))
        for row, point in enumerate(points):
            for column, method in enumerate(methods):
                axes = grid[row, column]
                cells = summary.of(method, point)
                if cells:
                    _draw(axes, cells, summary.sets, looks)
                axes.set_title(f"{method}: {preference_text(dict(point))}", fontsize=9)
                axes.set_ylim(0, 1)
                axes.set_xlabel("step of the weights")
                axes.set_ylabel("weight" if column == 0 else "")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=figures.legend_columns(len(labels), 5),
            frameon=False,
        )
        figures.save_figure(figure, folder / "weigh_weights.png")


def _draw(
    axes: Axes,
    cells: Sequence["MixtureResult"],
    names: Sequence[str],
    looks: Sequence[dict[str, Any]],
) -> None:
    length = min(len(cell.curve) for cell in cells)
    curves = np.array([cell.curve[:length] for cell in cells], dtype=float)  # (seeds, T, N)
    steps = np.arange(1, length + 1)
    axes.axhline(1 / len(names), color="0.6", lw=0.8, ls=":")
    for n, name in enumerate(names):
        color = looks[n]["color"]
        axes.plot(steps, curves[:, :, n].mean(0), color=color, lw=1.6, label=name)
        low, high = curves[:, :, n].min(0), curves[:, :, n].max(0)
        axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
        bars = [cell.interval[name] for cell in cells if cell.interval]
        if bars:
            low, high = np.mean(bars, axis=0)
            place = length * (1.02 + 0.01 * n)  # beside each other
            axes.plot([place, place], [low, high], color=color, lw=3, alpha=0.6)
