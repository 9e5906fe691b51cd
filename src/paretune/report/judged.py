"""What judges made of a run, from its ``judge/judge.json``, as tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from paretune.errors import InputError
from paretune.files import read_json
from paretune.report.figures import preference_label
from paretune.report.tables import Table, number

JUDGED = Path("judge") / "judge.json"


class Judged(NamedTuple):
    """One table of one judge."""

    title: str
    note: str
    table: Table


def judged_tables(run: Path) -> list[Judged]:
    """The tables of a run's judges; none if it was not judged.

    Raises:
        InputError: the file is not one that `paretune judge` of this version wrote.
    """
    path = run / JUDGED
    if not path.is_file():
        return []
    try:
        return [table for judge in read_json(path)["judges"] for table in _tables(judge)]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"'{path}' does not hold judged answers of this version ({error}): run "
            f"`paretune judge {run}` again, or delete it."
        ) from error


def _tables(judge: Mapping[str, Any]) -> list[Judged]:
    model = str(judge["judge"]["model"])
    counts = ", ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in judge["counts"].items()
    )
    account = f"{judge['questions']:,} questions on {judge['prompts']:,} prompts: {counts}."
    found = []
    if judge["aspects"]:
        note = (
            f"{account} Mean rating, and its change over the base model's answers to the same "
            "prompts with the 95 % interval of a paired bootstrap."
        )
        found.append(Judged(f"Ratings by {model}", note, _ratings(judge)))
    if any(row["wins"] for row in judge["rows"]):
        note = (
            f"{account} Each pair was judged in both orders; 50 % is a tie, and a verdict that "
            "follows the order counts as one."
        )
        found.append(Judged(f"Wins over the base model, by {model}", note, _wins(judge)))
    return found


def _ratings(judge: Mapping[str, Any]) -> Table:
    head, base = ["method and p"], ["base model"]
    for aspect in judge["aspects"]:
        head += [aspect.replace("_", " "), "over base", "prompts"]
        of = judge["base"][aspect]
        base += [number(of["mean"]), "", str(of["counts"].get("rated", 0))]
    rows = [base]
    for row in judge["rows"]:
        line = [_name(row)]
        for aspect in judge["aspects"]:
            of = row["aspects"][aspect]
            line += [number(of["mean"]), _interval(of["percent"], "+.1f"), str(of["prompts"])]
        rows.append(line)
    return Table(head, rows)


def _wins(judge: Mapping[str, Any]) -> Table:
    judged = [row for row in judge["rows"] if row["wins"]]
    kinds = list(dict.fromkeys(kind for row in judged for kind in row["wins"]["counts"]))
    rows = [
        [
            _name(row),
            _interval(row["wins"]["rate"], ".1f"),
            *(str(row["wins"]["counts"].get(kind, 0)) for kind in kinds),
        ]
        for row in judged
    ]
    return Table(["method and p", "win rate", *(kind.replace("_", " ") for kind in kinds)], rows)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['title']} {preference_label(row['preference'])}"


def _interval(estimate: Mapping[str, Any] | None, spec: str) -> str:
    """``"+12.3 % [+4.5, +20.1]"``; nothing where there is no estimate."""
    if estimate is None:
        return ""
    text = f"{number(estimate['value'], spec)} %"
    if estimate["interval"] is None:
        return text
    low, high = estimate["interval"]
    return f"{text} [{number(low, spec)}, {number(high, spec)}]"
