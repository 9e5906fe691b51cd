"""The scores of answers along p, for two objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from paretune.report.figures import COLOURS, MARKERS, STYLE, save_figure
from paretune.results.front import FrontPoint


def draw_scores_along(
    series: Mapping[str, Sequence[FrontPoint]],
    objectives: Sequence[str],
    paths: Sequence[Path],
    *,
    title: str | None = None,
) -> bool:
    """Draw each scorer's mean over a point's answers, with its standard error, against p.

    Args:
        series: Points under the name of their front.
        objectives: Two names; p is the weight of the first.
        paths: Files to write; the suffix names the format.

    Returns:
        False, with nothing written, if fewer than two points have scores or if there are not two
        objectives.
    """
    scored = {name: [p for p in points if p.scores] for name, points in series.items()}
    scored = {
        name: sorted(points, key=lambda point: point.preference[objectives[0]])
        for name, points in scored.items()
        if points
    }
    if len(objectives) != 2 or sum(map(len, scored.values())) < 2:
        return False
    scorers = list(dict.fromkeys(s for points in scored.values() for p in points for s in p.scores))
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.9 + 2.1 * len(scorers)), layout="constrained")
        panels = figure.subplots(len(scorers), 1, sharex=True, squeeze=False)[:, 0]
        for scorer, axes in zip(scorers, panels, strict=True):
            for (name, points), colour, marker in zip(
                scored.items(), cycle(COLOURS), cycle(MARKERS), strict=False
            ):
                shown = [p for p in points if scorer in p.scores]
                axes.errorbar(
                    [p.preference[objectives[0]] for p in shown],
                    [p.scores[scorer].mean for p in shown],
                    [p.scores[scorer].standard_error for p in shown],
                    color=colour,
                    marker=marker,
                    lw=1.2,
                    capsize=3,
                    label=name,
                )
            axes.set_ylabel(f"score {scorer}\n(higher is better)")
        panels[-1].set_xlabel(f"p of {objectives[0]} (of {objectives[1]}: 1 - p)")
        if len(scored) > 1:
            handles, names = panels[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        if title:
            figure.suptitle(title, fontsize=12)
        for path in paths:
            save_figure(figure, path)
    return True
