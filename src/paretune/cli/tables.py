"""Printing a front: a table of its points, and some answers side by side."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from paretune.cli.output import console
from paretune.files import main_process, read_jsonl
from paretune.results.comparison import Comparison, Spread
from paretune.results.front import Front, FrontPoint

_PROMPTS = 3
_COLUMNS = 4


def comparison_table(comparison: Comparison) -> Table:
    """One row a method: its front, and what one p and all of them cost."""
    table = Table(title=f"{comparison.name}: test split", title_justify="left")
    table.add_column("method")
    for column in ("points", "hypervolume", "policy tokens\nof a point", "min for\none p"):
        table.add_column(column, justify="right")
    table.add_column("min for\nall p", justify="right")
    for title in comparison.titles:
        cells, cost = comparison.of_title(title), comparison.cost(title)
        volume = Spread.of([c.hypervolume for c in cells if c.hypervolume is not None])
        done = sum(len(cell.points) for cell in cells)
        row = [title, f"{done} of {done + sum(len(cell.missing) for cell in cells)}"]
        if volume is not None and cost is not None:
            deviation = "" if volume.deviation is None else f" ±{volume.deviation:.4f}"
            row += [f"{volume.mean:.4f}{deviation}", f"{cost.point.policy_tokens:,}"]
            row += [f"{(cost.point.seconds + cost.shared.seconds) / 60:.2f}"]
            row += [f"{cost.front.seconds / 60:.2f}"]
        table.add_row(*(Text(cell) for cell in row))
    return table


def print_front(front: Front, folder: str | Path) -> None:
    """Print the points of a front and, where answers were scored, a few of them."""
    if not main_process():
        return
    terminal = console()
    folder = Path(folder)
    terminal.print(front_table(front))
    best = sum(point.nondominated for point in front.points)
    reference = ", ".join(
        f"{name} {value:.3f}"
        for name, value in zip(front.objectives, front.reference_point, strict=True)
    )
    terminal.print(
        f"{best} of {len(front.points)} points non-dominated (*); hypervolume "
        f"{front.hypervolume:.4g} against the reference point ({reference}).",
        highlight=False,
    )
    if any(point.text for point in front.points):
        terminal.print()
        terminal.print(text_table(front))
    shown = [point for point in front.points if point.scores][:: _stride(front)]
    for table in answer_tables(shown, folder):
        terminal.print()
        terminal.print(table)
    terminal.print(f"\nIn {folder}: front.json, front.png, points/", highlight=False, markup=False)


def front_table(front: Front) -> Table:
    """One row a point: p, metrics of each objective, max p·f, means of the answers' scores."""
    table = Table(title=f"{front.name}: {front.method}, {front.split} split", title_justify="left")
    seeds = len({point.seed for point in front.points}) > 1
    scorers = list(front.points[0].scores)
    table.add_column("p = (" + ", ".join(front.objectives) + ")", no_wrap=True)
    if seeds:
        table.add_column("seed", justify="right")
    for name in front.objectives:
        table.add_column(f"{name}\nloss   acc.  margin", justify="right", no_wrap=True)
    table.add_column("max\np·loss", justify="right")
    for name in scorers:
        table.add_column(f"answers:\n{name}", justify="right")
    for point in front.points:
        weights = ", ".join(f"{weight:.3g}" for weight in point.preference.values())
        row = [f"({weights}){'*' if point.nondominated else ''}"]
        if seeds:
            row.append(str(point.seed))
        row += [f"{m.loss:.3f}  {m.accuracy:4.0%}  {m.margin:+.3f}" for m in point.metrics.values()]
        row.append(f"{point.chebyshev:.3f}")
        row += [f"{s.mean:.2f} ±{s.standard_error:.2f}" for s in point.scores.values()]
        table.add_row(*(Text(cell) for cell in row))
    return table


def text_table(front: Front) -> Table:
    """What the answers of each point look like, by which a good score may be explained."""
    table = Table(title="answers as texts", title_justify="left")
    table.add_column("p = (" + ", ".join(front.objectives) + ")", no_wrap=True)
    for column in ("tokens", "refused", "repeated", "empty", "cut", "distinct-1", "distinct-2"):
        table.add_column(column, justify="right")
    for point in front.points:
        text = point.text
        if text is None:
            continue
        weights = ", ".join(f"{weight:.3g}" for weight in point.preference.values())
        tokens = "" if point.answer_tokens is None else f"{point.answer_tokens:.1f}"
        shares = (text.refusals, text.repetition, text.empty, text.unfinished)
        distinct = ("" if d is None else f"{d:.3f}" for d in (text.distinct_1, text.distinct_2))
        row = [f"({weights})", tokens, *(f"{share:.1%}" for share in shares), *distinct]
        table.add_row(*(Text(cell) for cell in row))
    return table


def answer_tables(points: Sequence[FrontPoint], folder: Path) -> list[Table]:
    """The points' answers to the first prompts, one table a prompt, side by side."""
    answers = []
    for point in points:
        path = folder / point.folder / "answers.jsonl"
        if not path.exists():
            return []
        answers.append([row for _, row in islice(read_jsonl(path), _PROMPTS)])
    tables = []
    for row in zip(*answers, strict=False):
        table = Table(title=Text(_prompt_text(row[0]["prompt"])), title_justify="left")
        for point in points:
            weights = ", ".join(f"{name} {w:.3g}" for name, w in point.preference.items())
            table.add_column(Text(weights), ratio=1)
        table.add_row(
            *(Text(a["response"].strip() + ("" if a["finished"] else " [...]")) for a in row)
        )
        tables.append(table)
    return tables


def _stride(front: Front) -> int:
    return max(1, -(-len(front.points) // _COLUMNS))


def _prompt_text(prompt: Any) -> str:
    return str(prompt if isinstance(prompt, str) else prompt[-1]["content"])
