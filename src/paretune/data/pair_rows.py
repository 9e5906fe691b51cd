"""Rows as trainers take them, checked: a prompt and its responses, with what stands beside them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from paretune.data.messages import OPTIONS, TOOLS, Text, with_option, with_prompt
from paretune.data.rows import weight_fault
from paretune.errors import InputError
from paretune.names import shown

_COLUMNS = ("prompt", "chosen", "rejected", "completion", "weight", TOOLS, OPTIONS)
_NOT_TEXT = ("image", "images", "audio", "audios", "video", "videos")


class PairRow(NamedTuple):
    """A row of preference data.

    Attributes:
        responses: The chosen and the rejected one.
        row: Its number in the data set, from 0.
        where: What to call it in messages.
    """

    prompt: Text
    responses: tuple[Text, Text]
    weight: float
    row: int
    where: str


def pair_row(record: Mapping[str, Any], row: int, where: str) -> PairRow:
    """Read a record as a pair.

    Raises:
        InputError: for a missing prompt or response, two equal responses, or a weight that is no
            positive number.
    """
    record = with_prompt(record)
    asked = prompt(record, where)
    chosen, rejected = (response(record, side, where) for side in ("chosen", "rejected"))
    if chosen == rejected:
        raise InputError(f"In {where}, chosen and rejected are the same: remove the row.")
    return PairRow(asked, (chosen, rejected), _weight(record, where), row, where)


def completion_row(record: Mapping[str, Any], where: str) -> tuple[Text, Text]:
    """Read a record as a prompt and its one response, in the column ``completion``.

    Raises:
        InputError: for a missing prompt or response.
    """
    _check_record(record, where, "prompt and completion")
    answer = response(record, "completion", where)
    return prompt(record, where), answer


def prompt(record: Mapping[str, Any], where: str) -> Text:
    """The prompt with the tools and template's options that stand beside it."""
    found: Any = record.get("prompt")
    _check_text(found, "prompt", where, record)
    for name in (TOOLS, OPTIONS):
        if record.get(name):
            if isinstance(found, str):
                raise InputError(f"In {where}, {name!r} needs prompts that are messages.")
            found = with_option(found, name, record[name])
    return found  # type: ignore[no-any-return]


def response(record: Mapping[str, Any], side: str, where: str) -> Text:
    """The response in a column, which must be there."""
    found: Any = record.get(side)
    _check_text(found, side, where, record)
    return found  # type: ignore[no-any-return]


def unread(record: Mapping[str, Any], where: str) -> list[str]:
    """The columns that hold something which nobody reads.

    Raises:
        InputError: what they hold is no text, and would be missed.
    """
    _check_record(record, where, "prompt, chosen and rejected")
    found = [key for key in record if key not in _COLUMNS and record[key] is not None]
    for key in found:
        if key in _NOT_TEXT:
            raise InputError(f"In {where}, {key!r} cannot be trained on: only text can.")
    return found


def _check_record(record: Any, where: str, columns: str) -> None:
    if not isinstance(record, Mapping):
        raise InputError(f"In {where}, a row must be a record with {columns}, not {shown(record)}.")


def _weight(record: Mapping[str, Any], where: str) -> float:
    weight = record.get("weight")
    if weight is None:
        return 1.0
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not weight > 0:
        raise InputError(f"In {where}, weight must be a positive number, not {weight!r}.")
    if fault := weight_fault(weight):
        raise InputError(f"In {where}, weight {fault}.")
    return float(weight)


def _check_text(value: Any, name: str, where: str, record: Mapping[str, Any]) -> None:
    if name not in record:
        there = ", ".join(map(str, record)) or "no columns"
        raise InputError(f"In {where}, the column {name!r} is missing; there are {there}.")
    if value is None or (isinstance(value, str | Sequence) and not len(value)):
        raise InputError(f"In {where}, {name!r} is empty.")
    if not isinstance(value, str | Sequence):
        raise InputError(
            f"In {where}, {name!r} must be text or a list of messages, not {shown(value)}."
        )
