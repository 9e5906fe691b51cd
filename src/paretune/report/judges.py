"""What judges made of a run, as Markdown tables and as a picture."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paretune.report.figures import (
    COLOURS,
    STYLE,
    legend_columns,
    preference_label,
    save_figure,
)

Judged = Mapping[str, Any]
"""A judge's summary as JSON."""

_STATUSES = {
    "rated": "rated",
    "not_applicable": "N/A",
    "refused": "refused",
    "unparsable": "unparsable",
    "failed": "failed",
}
_COUNTS = {
    "win": "win",
    "half_win": "win/tie",
    "tie": "tie",
    "half_loss": "loss/tie",
    "loss": "loss",
    "identical": "same text",
    "left_out": "left out",
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def markdown(judges: Sequence[Judged]) -> str:
    """The tables of all judges."""
    parts = ["# Judged answers"]
    for judged in judges:
        parts += [f"## {_cell(judged['judge']['model'])}", _account(judged)]
        if judged["aspects"]:
            parts += [
                "Ratings of 1 to 5: mean, and improvement over the base model's answers to the "
                "same prompts, with the 95 % interval of a paired bootstrap over prompts.",
                _ratings(judged),
            ]
        if any(row["wins"] for row in judged["rows"]):
            parts += [
                "Against the base model's answers, each pair judged in both orders: 100 % is a win "
                "on every prompt, 50 % a tie. A verdict that follows the order is a tie.",
                _wins(judged),
            ]
        if judged["failures"]:
            lines = [f"- {count} × {_cell(why)}" for why, count in judged["failures"].items()]
            parts += ["Failed, and to be asked at the next run:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def account(judged: Judged) -> str:
    """What came of all questions, in one line."""
    counts = judged["counts"]
    named = ", ".join(
        f"{counts[name]} {word}" for name, word in _STATUSES.items() if name in counts
    )
    return f"{judged['questions']} questions: {named}"


def interval_text(estimate: Mapping[str, Any] | None, sign: str = "+") -> str:
    """``"+12.3 % [4.5, 20.1]"``; empty where there is nothing."""
    if estimate is None:
        return ""
    ends = estimate["interval"]
    shown = "" if ends is None else f" [{ends[0]:{sign}.1f}, {ends[1]:{sign}.1f}]"
    return f"{estimate['value']:{sign}.1f} %{shown}"


def draw_judges(judges: Sequence[Judged], path: Path) -> None:
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
        size = (1.6 + 3.1 * width, 0.8 + max(height, 2.0) * len(rows))
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
            names = ", ".join(judged["rows"][0]["preference"])
            line[0].set_ylabel(f"p = ({names})")
            heading = f"judge {judged['judge']['model']}\n{line[0].get_title(loc='left')}"
            line[0].set_title(heading, loc="left")
        handles, titles = all_axes[0, 0].get_legend_handles_labels()
        columns = legend_columns(len(handles), 4)
        figure.legend(handles, titles, loc="outside lower center", ncols=columns, frameon=False)
        save_figure(figure, path)


Values = list[tuple[str, str, Mapping[str, Any] | None]]  # title, label of p, estimate


def _panels(judged: Judged) -> list[tuple[str, float, Values]]:
    """Name, the value of the base model, and what to draw."""
    rows = judged["rows"]

    def of(estimates: Iterable[Mapping[str, Any] | None]) -> Values:
        return [
            (row["title"], preference_label(row["preference"]), estimate)
            for row, estimate in zip(rows, estimates, strict=True)
        ]

    panels = [
        (
            aspect,
            0.0,
            of(row["aspects"][aspect]["percent"] for row in rows),
        )
        for aspect in judged["aspects"]
    ]
    if any(row["wins"] for row in rows):
        panels += [("win rate over base", 50.0, of(row["wins"]["rate"] for row in rows))]
    return [panel for panel in panels if any(value for _, _, value in panel[2])]


def _labels(judged: Judged) -> list[str]:
    return list(dict.fromkeys(preference_label(row["preference"]) for row in judged["rows"]))


def _draw(axes: Axes, judged: Judged, values: Values, neutral: float) -> None:
    labels = _labels(judged)
    titles = list(dict.fromkeys(row["title"] for row in judged["rows"]))
    axes.axvline(neutral, color="#666666", lw=1.0, ls="--", label="base model")
    for number, (title, colour, marker) in enumerate(
        zip(titles, cycle(COLOURS), cycle(_MARKERS), strict=False)
    ):
        shift = 0.6 * ((number + 0.5) / len(titles) - 0.5)
        axes.plot([], [], color=colour, marker=marker, ls="", label=title)
        for owner, label, estimate in values:
            if owner == title and estimate is not None:
                height = labels.index(label) + shift
                if estimate["interval"] is not None:
                    axes.plot(estimate["interval"], [height, height], color=colour, lw=1.4)
                axes.plot(estimate["value"], height, color=colour, marker=marker, ms=5)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)


def _account(judged: Judged) -> str:
    judge, tokens = judged["judge"], judged["tokens"]
    cost = "" if judged["cost"] is None else f"; cost {judged['cost']:.2f} at the prices given"
    return (
        f"At {_cell(judge['where'])}, on {judged['prompts']} prompts. {account(judged)}. Tokens, "
        f"as the judge counted them: {tokens['input']:,} in, {tokens['output']:,} out{cost}."
    )


def _ratings(judged: Judged) -> str:
    aspects = judged["aspects"]
    head = ["method", "p"]
    for aspect in aspects:
        head += [aspect.replace("_", " "), "over base", "prompts"]
    base = ["base model", ""]
    for aspect in aspects:
        of = judged["base"][aspect]
        base += [_mean(of["mean"]), "", str(of["counts"].get("rated", 0))]
    rows = [base]
    for row in judged["rows"]:
        line = [_cell(row["title"]), preference_label(row["preference"])]
        for aspect in aspects:
            of = row["aspects"][aspect]
            line += [_mean(of["mean"]), interval_text(of["percent"]), str(of["prompts"])]
        rows.append(line)
    return _table(head, rows)


def _wins(judged: Judged) -> str:
    rows = []
    for row in judged["rows"]:
        of = row["wins"]
        line = [_cell(row["title"]), preference_label(row["preference"])]
        line += [interval_text(of["rate"], "")]
        line += [str(of["counts"].get(name, 0)) for name in _COUNTS]
        rows.append([*line, str(of["by_order"])])
    head = ["method", "p", "win rate", *_COUNTS.values(), "ties by order"]
    return _table(head, rows)


def _mean(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _cell(text: str) -> str:
    """Text from elsewhere as plain text of one table cell."""
    for character in "\\`*_[]<>|#!&~":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
