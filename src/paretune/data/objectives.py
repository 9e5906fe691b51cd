"""A trainer's data as a mapping from objectives to rows, in whatever form it was given."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from paretune.data.sources import open_rows
from paretune.errors import InputError

OBJECTIVE = "objective"
"""The column that says whose row it is, where one table holds those of all objectives."""

_SPLITS = {"train", "test", "validation", "valid", "dev", "eval"}


def by_objective(
    data: Any, what: str = "training data"
) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """Rows of each objective.

    Args:
        data: A mapping from objectives to rows, or rows with a column `OBJECTIVE`. Rows are a
            `datasets.Dataset`, streamed or not, a list, a generator, a pandas data frame, a file,
            or a data set on the hub. What can be read again is not kept.
        what: What it is, for messages.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(data, Mapping):
        if data and set(data) <= _SPLITS:
            first = next(iter(data))
            raise InputError(
                f"The {what} is a mapping of splits ({', '.join(data)}): give one of them, such as "
                f"data[{first!r}], with a column {OBJECTIVE!r}, or a mapping from objectives to "
                "rows."
            )
        return {name: open_rows(rows) for name, rows in data.items()}
    if isinstance(data, type(None) | int | float | bool):
        raise InputError(
            f"The {what} must be a mapping from the name of each objective to its rows, or rows "
            f"with a column {OBJECTIVE!r}, not a {type(data).__name__}."
        )
    rows = open_rows(data)
    if iter(rows) is rows:  # it can be read only once
        rows = list(rows)
    names = dict.fromkeys(_name(row, number, what) for number, row in enumerate(rows, start=1))
    return {name: _Part(rows, name) for name in names}


class _Part:
    """The rows of one objective, read again each time."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], name: str) -> None:
        self._rows, self._name = rows, name

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for row in self._rows:
            if row[OBJECTIVE] == self._name:
                yield {key: value for key, value in row.items() if key != OBJECTIVE}


def _name(row: Any, number: int, what: str) -> str:
    name = row.get(OBJECTIVE) if isinstance(row, Mapping) else None
    if not isinstance(name, str) or not name:
        raise InputError(
            f"The {what} is one table, and its row {number} does not say in {OBJECTIVE!r} whose it "
            "is: give it that column, or give a mapping from objectives to rows."
        )
    return name
