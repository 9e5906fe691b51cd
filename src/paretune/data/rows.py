"""One row of a data set: its fields, checked, with an error that says where it stands."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from paretune.errors import InputError

_LEAST_WEIGHT = 1e-30  # of a pair; sums of weights, and their inverses, are finite in float32
_NOT_RATED = ("", "N/A")
_BATCH = 1000


class BadRowError(InputError):
    """A row that cannot be used; `read_rows` says where it stands, or skips it."""


def is_whole(text: str) -> bool:
    """Whether a text has no lone surrogates, which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def records(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The rows one by one; those of a data set are read many at a time, which is much faster."""
    batches = getattr(rows, "iter", None)
    if batches is None:
        yield from rows
        return
    for columns in batches(batch_size=_BATCH):
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def weight_fault(weight: float) -> str | None:
    """What is wrong with a positive weight of a pair; None if nothing is."""
    if _LEAST_WEIGHT <= weight <= 1 / _LEAST_WEIGHT:
        return None
    return f"must lie between {_LEAST_WEIGHT:g} and {1 / _LEAST_WEIGHT:g}, not {weight:g}"


@dataclass
class Columns:
    """Which columns of a source have been read, and those of messages that have been left."""

    read: set[str] = field(default_factory=set)
    given: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)

    def unread(self) -> dict[str, int]:
        """Columns that nobody reads, with the number of rows that hold something there."""
        top = {name: count for name, count in self.given.items() if name not in self.read}
        return {**top, **self.left}


@dataclass(frozen=True)
class Row:
    """One row with its place in its source, so that every complaint can name it.

    Attributes:
        values: The fields.
        origin: The file, data set or list that the row comes from.
        position: Its number there, counting from 1 (of a jsonl file: its line).
        prefix: Set before field names in messages; names a record inside the row.
        columns: Is told what is read.
    """

    values: Mapping[str, Any]
    origin: str
    position: int
    prefix: str = ""
    columns: Columns = field(default_factory=Columns, compare=False, repr=False)

    def error(self, field: str, problem: str) -> BadRowError:
        """The error that names file, row and field."""
        place = f"{self.origin}, row {self.position} (counting from 1)"
        return BadRowError(f"{place}, field {self.prefix + field!r}: {problem}")

    def get(self, field: str) -> Any:
        """The value of a field, which must be there and not be null."""
        self._note(field)
        if self.values.get(field) is None:
            raise self.missing(field)
        return self.values[field]

    def text(self, field: str) -> str:
        """A field that holds text other than white space."""
        value = self.get(field)
        if not isinstance(value, str):
            raise self.error(field, f"must be text, not {type(value).__name__}")
        if not value.strip():
            raise self.error(field, "is empty")
        if not is_whole(value):
            raise self.error(field, "holds half of a character (a lone surrogate)")
        return value

    def label(self, field: str) -> Literal[0, 1]:
        """A field that names one of two responses by 0 or 1 (as number or text, not as bool)."""
        value = self.get(field)
        if isinstance(value, bool) or value not in (0, 1, "0", "1"):
            raise self.error(field, f"must be 0 or 1, not {value!r}")
        return 1 if int(value) else 0

    def rating(self, field: str) -> float | None:
        """A finite number, as number or text; None where nothing (null, empty, "N/A") was rated."""
        if field not in self.values:
            raise self.missing(field)
        self._note(field)
        value = self.values[field]
        if value is None or (isinstance(value, str) and value.strip() in _NOT_RATED):
            return None
        return self.number(field)

    def number(self, field: str) -> float:
        """A finite number, as number or text."""
        value = self.get(field)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.error(field, f"must be a finite number, not {value!r}")
        return number

    def nested(self, field: str) -> list["Row"]:
        """The records in a field that holds a list of them."""
        value = self.get(field)
        if not isinstance(value, Sequence) or not all(isinstance(v, Mapping) for v in value):
            raise self.error(field, "must be a list of records")
        return [
            Row(record, self.origin, self.position, f"{self.prefix}{field}[{i}].", self.columns)
            for i, record in enumerate(value, start=1)
        ]

    def inside(self, field: str) -> "Row":
        """The record in a field that holds one."""
        value = self.get(field)
        if not isinstance(value, Mapping):
            raise self.error(field, f"must be a record, not {type(value).__name__}")
        return Row(value, self.origin, self.position, f"{self.prefix}{field}.", self.columns)

    def leave(self, fields: Iterable[str]) -> None:
        """Say that nobody reads these fields of a record inside the row."""
        for name in fields:
            if self.values.get(name) is not None:
                self.columns.left[re.sub(r"\[\d+\]", "", self.prefix) + str(name)] += 1

    def _note(self, field: str) -> None:
        if not self.prefix:
            self.columns.read.add(field)

    def missing(self, field: str) -> BadRowError:
        """The error that a field is not there."""
        present = ", ".join(str(name) for name in self.values) or "no fields"
        return self.error(field, f"is missing (the row has {present})")
