"""What judges made of a run, as a picture."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paretune.judging.summary import Estimate, Summary
from paretune.report.figures import (
    COLOURS,
    MARKERS,
    MOST_INCHES,
    STYLE,
    legend_columns,
    save_figure,
)
from paretune.results.text import preference_text


def draw_judges(judges: Sequence[Summary], path: Path) -> None:
    """Draw improvements (%) with intervals: one row a judge, one panel an aspect.

    Win rates are a further panel. Nothing is drawn where nothing was rated.
    """
    rows = [(judged, panels) for judged in judges if (panels := _panels(judged))]
    if not rows:
        path.unlink(missing_ok=True)  # of an earlier time
        return
    width = max(len(panels) for _, panels in rows)
    labels = {label for judged, _ in rows for label in _labels(judged)}
    height = 1.3 + 0.3 * len(labels)
    with rc_context(STYLE):
        tall = min(0.8 + max(height, 2.0) * len(rows), MOST_INCHES)
        size = (1.6 + 3.1 * width, tall)
        figure = Figure(figsize=size, layout="constrained")
        all_axes = figure.subplots(len(rows), width, squeeze=False)
        for (judged, panels), line in zip(rows, all_axes, strict=True):
            for axes in line[len(panels) :]:
                axes.set_axis_off()
            for axes, (name, neutral, values) in zip(line, panels, strict=False):
                _draw(axes, judged, values, neutral)
                axes.set_title(name.replace("_", " "), loc="left")
                axes.set_xlabel("%" if neutral else "change of mean rating, %")
                if axes is not line[0]:
                    axes.set_yticklabels([])
            names = ", ".join(judged.rows[0].preference)
            line[0].set_ylabel(f"p = ({names})")
            heading = f"judge {judged.model}\n{line[0].get_title(loc='left')}"
            line[0].set_title(heading, loc="left")
        handles, titles = all_axes[0, 0].get_legend_handles_labels()
        columns = legend_columns(len(handles), 4)
        figure.legend(handles, titles, loc="outside lower center", ncols=columns, frameon=False)
        save_figure(figure, path)


Values = list[tuple[str, str, Estimate | None]]  # title, label of p, estimate


def _panels(judged: Summary) -> list[tuple[str, float, Values]]:
    """Name, the value of the base model, and what to draw."""
    rows = judged.rows

    def of(estimates: Iterable[Estimate | None]) -> Values:
        return [
            (row.title, preference_text(row.preference, names=False), estimate)
            for row, estimate in zip(rows, estimates, strict=True)
        ]

    panels = [
        (
            aspect,
            0.0,
            of(row.aspects[aspect].percent for row in rows),
        )
        for aspect in judged.aspects
    ]
    if any(row.wins for row in rows):
        panels += [
            ("win rate over base", 50.0, of(row.wins.rate if row.wins else None for row in rows))
        ]
    return [panel for panel in panels if any(value for _, _, value in panel[2])]


def _labels(judged: Summary) -> list[str]:
    return list(dict.fromkeys(preference_text(row.preference, names=False) for row in judged.rows))


def _draw(axes: Axes, judged: Summary, values: Values, neutral: float) -> None:
    labels = _labels(judged)
    titles = list(dict.fromkeys(row.title for row in judged.rows))
    axes.axvline(neutral, color="#666666", lw=1.0, ls="--", label="base model")
    for number, (title, colour, marker) in enumerate(
        zip(titles, cycle(COLOURS), cycle(MARKERS), strict=False)
    ):
        shift = 0.6 * ((number + 0.5) / len(titles) - 0.5)
        axes.plot([], [], color=colour, marker=marker, ls="", label=title)
        for owner, label, estimate in values:
            if owner == title and estimate is not None:
                height = labels.index(label) + shift
                if estimate.interval is not None:
                    axes.plot(estimate.interval, [height, height], color=colour, lw=1.4)
                axes.plot(estimate.value, height, color=colour, marker=marker, ms=5)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
