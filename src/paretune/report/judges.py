"""What judges made of a run, read from its folder, and as tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from paretune.errors import InputError
from paretune.files import read_json
from paretune.judging.summary import Summary
from paretune.results.table import Cell, Column, Table, left, numbers
from paretune.results.text import markdown_text, preference_text

JUDGES = Path("judge") / "judge.json"

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
_RATINGS = (
    "Ratings of 1 to 5: mean, and improvement over the base model's answers to the same prompts, "
    "with the 95 % interval of a paired bootstrap over prompts."
)
_WINS = (
    "Against the base model's answers, each pair judged in both orders: 100 % is a win on every "
    "prompt, 50 % a tie. A verdict that follows the order is a tie."
)


class Part(NamedTuple):
    """One table of one judge, and what it says."""

    note: str
    table: Table


def read_judges(run: Path) -> list[Summary]:
    """The judges of a run; none if it was not judged.

    Raises:
        InputError: the file is not one that `paretune judge` of this version wrote.
    """
    path = run / JUDGES
    if not path.is_file():
        return []
    try:
        return [Summary.from_json(judge) for judge in read_json(path)["judges"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"'{path}' does not hold judged answers of this version ({error}): run "
            f"`paretune judge {run}` again, or delete it."
        ) from error


def judge_tables(summary: Summary) -> list[Part]:
    """The tables of one judge."""
    account = f"{account_text(summary)}, on {summary.prompts:,} prompts."
    parts = []
    if summary.aspects:
        parts.append(Part(f"{account} {_RATINGS}", ratings(summary)))
    if summary.pairs:
        parts.append(Part(f"{account} {_WINS}", wins(summary)))
    return parts


def markdown(judges: Sequence[Summary]) -> str:
    """The tables of all judges."""
    parts = ["# Judged answers"]
    for summary in judges:
        parts += [f"## {markdown_text(summary.model)}", _where(summary)]
        if summary.aspects:
            parts += [_RATINGS, ratings(summary).to_markdown()]
        if summary.pairs:
            parts += [_WINS, wins(summary).to_markdown()]
        if summary.failures:
            lines = [f"- {count} × {markdown_text(why)}" for why, count in summary.failures.items()]
            parts += ["Failed, and to be asked at the next run:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def account_text(summary: Summary) -> str:
    """What came of all questions, in one line."""
    named = ", ".join(
        f"{summary.counts[name]:,} {word}"
        for name, word in _STATUSES.items()
        if name in summary.counts
    )
    return f"{summary.questions:,} questions: {named}"


def ratings(summary: Summary) -> Table:
    """Mean ratings and improvements: a row a model."""
    columns = [left("method"), left("p")]
    base: list[Cell] = ["base model", ""]
    for aspect in summary.aspects:
        columns += [Column(aspect.replace("_", " "), ".3f")]
        columns += [Column("over base", "+.1f"), Column("prompts")]
        of = summary.base[aspect]
        base += [of["mean"], None, of["counts"].get("rated", 0)]
    rows = [base]
    for row in summary.rows:
        line: list[Cell] = [row.title, preference_text(row.preference, names=False)]
        for aspect in summary.aspects:
            improved = row.aspects[aspect]
            line += [improved.mean, improved.percent, improved.prompts]
        rows.append(line)
    return Table(columns, rows, f"Ratings by {summary.model}")


def wins(summary: Summary) -> Table:
    """Win rates over the base model, and how they came about."""
    columns = [left("method"), left("p"), Column("win rate", ".1f")]
    columns += numbers([*_COUNTS.values(), "ties by order"])
    rows: list[list[Cell]] = []
    for row in summary.rows:
        if row.wins is not None:
            line: list[Cell] = [row.title, preference_text(row.preference, names=False)]
            line += [row.wins.rate, *(row.wins.counts.get(name, 0) for name in _COUNTS)]
            rows.append([*line, row.wins.by_order])
    return Table(columns, rows, f"Wins over the base model, by {summary.model}")


def improvements(summary: Summary) -> Table:
    """The changes over the base model alone, for a terminal."""
    columns = [left("method"), left(f"p = ({', '.join(summary.rows[0].preference)})")]
    columns += numbers(summary.aspects, "+.1f")
    if summary.pairs:
        columns.append(Column("win rate", ".1f"))
    rows: list[list[Cell]] = []
    for row in summary.rows:
        line: list[Cell] = [row.title, preference_text(row.preference, names=False)]
        line += [row.aspects[name].percent for name in summary.aspects]
        if summary.pairs:
            line.append(None if row.wins is None else row.wins.rate)
        rows.append(line)
    return Table(columns, rows, "improvement over the base model [95 %]")


def _where(summary: Summary) -> str:
    tokens = summary.tokens
    cost = "" if summary.cost is None else f"; cost {summary.cost:.2f} at the prices given"
    return (
        f"At {markdown_text(summary.judge['where'])}, on {summary.prompts} prompts. "
        f"{account_text(summary)}. Tokens, as the judge counted them: {tokens['input']:,} in, "
        f"{tokens['output']:,} out{cost}."
    )
