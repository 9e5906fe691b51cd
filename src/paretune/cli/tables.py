"""Printing a front: a table of its points, and some answers side by side."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paretune.cli.output import console, print_table
from paretune.files import main_process
from paretune.report.tables import dial, methods
from paretune.results.answers import read_answers
from paretune.results.comparison import Comparison
from paretune.results.dial import points_calibration
from paretune.results.front import Front, FrontPoint
from paretune.results.table import Cell, Column, Table, left, numbers
from paretune.results.text import preference_text

_PROMPTS = 3
_COLUMNS = 4


def comparison_table(comparison: Comparison) -> Table:
    """One row a method: its front, and what one p and all of them cost."""
    return replace(methods(comparison), title=f"{comparison.name}: test split")


def print_front(front: Front, folder: str | Path) -> None:
    """Print the points of a front and, where answers were scored, a few of them."""
    if not main_process():
        return
    terminal = console()
    folder = Path(folder)
    print_table(front_table(front), terminal)
    best = sum(point.nondominated for point in front.points)
    reference = ", ".join(
        f"{name} {value:.3f}"
        for name, value in zip(front.objectives, front.reference_point, strict=True)
    )
    terminal.print(
        f"{best} of {len(front.points)} points non-dominated (*); hypervolume "
        f"{front.hypervolume:.4g} against the reference point ({reference}).",
        highlight=False,
        markup=False,
    )
    calibration = points_calibration(folder, front.points, front.objectives)
    if calibration is not None:
        terminal.print()
        print_table(dial(calibration, front.objectives), terminal)
        terminal.print(
            "Losses expected on the validation split; the gate is where the adapter is put.",
            highlight=False,
        )
    if any(point.text for point in front.points):
        terminal.print()
        print_table(text_table(front), terminal)
    shown = [point for point in front.points if point.scores][:: _stride(front)]
    for table in answer_tables(shown, folder):
        terminal.print()
        terminal.print(table.to_rich())
    terminal.print(f"\nIn {folder}: front.json, front.png, points/", highlight=False, markup=False)


def front_table(front: Front) -> Table:
    """One row a point: p, metrics of each objective, max p·f, means of the answers' scores."""
    seeds = len({point.seed for point in front.points}) > 1
    columns = [_preference_column(front), *([Column("seed")] if seeds else [])]
    columns += [Column(f"{name}\nloss   acc.  margin", wrap=False) for name in front.objectives]
    columns += [Column("max\np·loss", ".3f")]
    columns += [Column(f"answers:\n{name}") for name in front.points[0].scores]
    skipped = any(point.skipped_steps for point in front.points)
    columns += [Column("skipped\nsteps", ",")] if skipped else []
    rows: list[list[Cell]] = []
    for point in front.points:
        label = preference_text(point.preference, names=False)
        row: list[Cell] = [f"{label}{'*' if point.nondominated else ''}"]
        row += [point.seed] if seeds else []
        row += [f"{m.loss:.3f}  {m.accuracy:4.0%}  {m.margin:+.3f}" for m in point.metrics.values()]
        row.append(point.chebyshev)
        row += [f"{s.mean:.2f} ±{s.standard_error:.2f}" for s in point.scores.values()]
        rows.append([*row, point.skipped_steps] if skipped else row)
    return Table(columns, rows, f"{front.name}: {front.method}, {front.split} split")


def text_table(front: Front) -> Table:
    """What the answers of each point look like, by which a good score may be explained."""
    columns = [_preference_column(front), Column("tokens", ".1f")]
    columns += numbers(["refused", "repeated", "empty", "cut"], ".1%")
    columns += numbers(["distinct-1", "distinct-2"], ".3f")
    rows: list[list[Cell]] = []
    for point in front.points:
        if (text := point.text) is not None:
            row: list[Cell] = [preference_text(point.preference, names=False), point.answer_tokens]
            row += [text.refusals, text.repetition, text.empty, text.unfinished]
            rows.append([*row, text.distinct_1, text.distinct_2])
    return Table(columns, rows, "answers as texts")


def _preference_column(front: Front) -> Column:
    return Column(f"p = ({', '.join(front.objectives)})", align="left", wrap=False)


def answer_tables(points: Sequence[FrontPoint], folder: Path) -> list[Table]:
    """The points' answers to the first prompts, one table a prompt, side by side."""
    answers = []
    for point in points:
        path = folder / point.folder / "answers.jsonl"
        if not path.exists():
            return []
        answers.append(read_answers(path)[:_PROMPTS])
    tables = []
    for row in zip(*answers, strict=False):
        said = [a.response.strip() + ("" if a.finished else " [...]") for a in row]
        columns = [left(preference_text(point.preference)) for point in points]
        tables.append(Table(columns, [said], _prompt_text(row[0].prompt)))
    return tables


def _stride(front: Front) -> int:
    return max(1, -(-len(front.points) // _COLUMNS))


def _prompt_text(prompt: Any) -> str:
    return str(prompt if isinstance(prompt, str) else prompt[-1]["content"])
