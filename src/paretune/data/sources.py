"""Where rows come from: the hub, a local file, or memory."""

import csv
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from paretune.data.rows import BadRowError, Columns, Row
from paretune.errors import InputError
from paretune.files import parse_json, read_jsonl, user_path

logger = logging.getLogger(__name__)

T = TypeVar("T")
Rows = Iterable[Mapping[str, Any]]  # or a pandas data frame
BadRows = Literal["error", "skip"]
"""What a bad row does: stop the loading with an error, or be left out, counted and logged."""

_SHOWN_BAD_ROWS = 5  # how many messages of skipped rows the counts keep


@dataclass(frozen=True)
class HubDataset:
    """One split of a data set on the Hugging Face hub; ``revision`` pins it to a commit or tag."""

    path: str
    split: str = "train"
    revision: str | None = None
    config: str | None = None
    data_dir: str | None = None


Source = str | os.PathLike[str] | HubDataset | Rows
"""A file (.jsonl, .json, .csv, .parquet), a hub id (its train split), a `HubDataset`, or rows: a
`datasets.Dataset`, a list, a generator, a pandas data frame."""


def read_rows(
    source: Source, parse: Callable[[Row], T], bad_rows: BadRows = "error"
) -> tuple[list[T], dict[str, Any]]:
    """Parse each row of a source.

    Args:
        source: See `Source`.
        parse: Makes an item of a row; raises `Row.error` if it cannot.
        bad_rows: ``"error"`` or ``"skip"``.

    Returns:
        The items, and as counts the ``rows`` read, the ``skipped_rows`` among them, the messages
        about the first of those (``skipped_examples``), and how many rows hold something in
        columns that nobody reads (``unread_columns``).

    Raises:
        InputError: a source that is missing, unreadable or empty; a bad row (by default); or
            no good row at all.
    """
    check_choice("bad_rows", bad_rows, ("error", "skip"))
    name, numbered = _open(source)
    items, skipped, rows, columns = [], [], 0, Columns()
    for number, values in numbered:
        rows += 1
        try:
            items.append(parse(_row(values, name, number, columns)))
        except BadRowError as error:
            if bad_rows == "error":
                raise InputError(
                    f"{error}; mend or remove it, or set bad_rows to skip (data.bad_rows "
                    "in a recipe)."
                ) from None
            skipped.append(str(error))
    if not items:
        why = f"all {rows} rows are bad, the first being {skipped[0]}" if skipped else "it is empty"
        raise InputError(f"There is no data in {name}: {why}.")
    if skipped:
        logger.warning("Skipped %d of %d rows, first: %s", len(skipped), rows, skipped[0])
    unread = columns.unread()
    if unread:
        logger.warning("Of %s nobody reads the columns %s.", name, ", ".join(unread))
    counts = {
        "rows": rows,
        "skipped_rows": len(skipped),
        "skipped_examples": skipped[:_SHOWN_BAD_ROWS],
        "unread_columns": unread,
    }
    return items, counts


def read_each(
    sources: Mapping[str, Source], parse: Callable[[Row], T], bad_rows: BadRows = "error"
) -> tuple[dict[str, list[T]], dict[str, Any]]:
    """`read_rows` of one source for each objective, with the counts added up."""
    tables = {name: read_rows(source, parse, bad_rows) for name, source in sources.items()}
    counts = [counts for _, counts in tables.values()]
    examples = [message for c in counts for message in c["skipped_examples"]]
    total: dict[str, Any] = {key: sum(c[key] for c in counts) for key in ("rows", "skipped_rows")}
    total["skipped_examples"] = examples[:_SHOWN_BAD_ROWS]
    unread: Counter[str] = sum((Counter(c["unread_columns"]) for c in counts), Counter())
    total["unread_columns"] = dict(unread)
    return {name: items for name, (items, _) in tables.items()}, total


def pinned(source: Any, revision: str | None) -> Any:
    """The source, or that of each objective, at a commit or tag on the hub; None leaves it."""
    if revision is None:
        return source
    if isinstance(source, HubDataset):
        return replace(source, revision=revision)
    if isinstance(source, Mapping):
        return {name: pinned(each, revision) for name, each in source.items()}
    name = str(source) if isinstance(source, str | os.PathLike) else "the given rows"
    if name != source or user_path(name).suffix.lower() in _READERS:
        raise InputError(
            f"A revision is of a data set on the hub, and not of {name}: leave it out."
        )
    return HubDataset(name, revision=revision)


def open_rows(source: Any) -> Iterable[Any]:
    """The rows of a source, one at a time where it can give them so."""
    return (row for _, row in _open(source)[1]) if _named(source) else _records(source)


def _named(source: Any) -> bool:
    return isinstance(source, str | os.PathLike | HubDataset)


def _records(table: Any) -> Iterable[Any]:
    """The rows of a data frame, whose own iterator gives the columns; anything else as it is."""
    if isinstance(table, Mapping):
        raise InputError(
            f"The data is a mapping with {', '.join(map(str, table))}, where one table is "
            "expected: give one of them."
        )
    if not (hasattr(table, "to_dict") and hasattr(table, "iterrows")):
        if isinstance(table, Iterable):
            return table
        raise InputError(f"The data must be rows, not a {type(table).__name__}.")
    return [
        {str(key): _plain(cell) for key, cell in row.items()} for row in table.to_dict("records")
    ]


def _plain(cell: Any) -> Any:
    """A cell without numpy's types, which columns of lists and numbers have; NaN is None."""
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if isinstance(cell, Mapping):
        return {key: _plain(each) for key, each in cell.items()}
    if isinstance(cell, list | tuple):
        return [_plain(each) for each in cell]
    return None if cell != cell or type(cell).__name__ == "NAType" else cell


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse an option's value that is not among those allowed."""
    if value not in allowed:
        raise InputError(f"{name}={value!r} is unknown; use one of {', '.join(allowed)}.")


def _row(values: Any, origin: str, number: int, columns: Columns) -> Row:
    if not isinstance(values, Mapping):
        raise BadRowError(
            f"{origin}, row {number} (counting from 1): must be a record with named fields, "
            f"not {type(values).__name__}"
        )
    row = Row(values, origin, number, columns=columns)
    columns.given.update(str(name) for name, value in values.items() if value not in (None, ""))
    if None in values:  # where csv.DictReader puts surplus cells
        raise row.error("(none)", "the row has more cells than the header")
    return row


def _open(source: Source) -> tuple[str, Iterable[tuple[int, Any]]]:
    """A name for the source, and its rows with their numbers."""
    if isinstance(source, HubDataset):
        return f"hub data set {source.path}", enumerate(_load_hub(source), start=1)
    if not isinstance(source, str | os.PathLike):
        return "the given rows", enumerate(_records(source), start=1)
    path = user_path(source)
    if path.suffix.lower() not in _READERS:
        if isinstance(source, str) and not path.exists() and not source.startswith((".", "/", "~")):
            return _open(HubDataset(source))
        formats = ", ".join(_READERS)
        raise InputError(f"{source} is not a data file: give a file that ends in {formats}.")
    if not path.is_file():
        raise InputError(f"The data file {source} does not exist: check the path.")
    return str(source), _read_file(path, source)


def _read_file(path: Path, source: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    try:
        yield from _READERS[path.suffix.lower()](path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The data file {source} cannot be read: {error}.") from error


def _load_hub(hub: HubDataset) -> Rows:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows: Rows = datasets.load_dataset(
            hub.path, hub.config, data_dir=hub.data_dir, split=hub.split, revision=hub.revision
        )
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            f"The hub data set {hub.path} (split {hub.split!r}, revision {hub.revision or 'main'})"
            f" cannot be loaded: check the id and the network, or give a local file ({error})."
        ) from error
    return rows


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        rows = parse_json(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise InputError(
            f"{path} is not valid JSON ({error}): mend it, or name it .jsonl if it holds one "
            "object a line."
        ) from None
    if not isinstance(rows, list):
        raise InputError(f"{path} must hold a JSON list of objects, not one {type(rows).__name__}.")
    return enumerate(rows, start=1)


def _read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    limit = csv.field_size_limit(2**31 - 1)  # the default of 128 kB is short for dialogues
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _refuse_twice(path, reader.fieldnames or ())
            yield from enumerate(reader, start=1)
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet  # type: ignore[import-untyped]
    from pyarrow import ArrowException

    try:
        _refuse_twice(path, pyarrow.parquet.read_schema(path).names)
        return enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)
    except ArrowException as error:
        raise InputError(f"{path} is not a parquet file ({error}).") from error


def _refuse_twice(path: Path, columns: Sequence[str]) -> None:
    """Raise InputError where two columns of a table have one name: only one would be read."""
    for name, times in Counter(columns).items():
        if times > 1:
            raise InputError(f"{path} has {times} columns named {name!r}: rename or remove one.")


_READERS: Mapping[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
