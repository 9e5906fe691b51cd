"""Rows of training sets and criteria, in any of three forms, as token sequences."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from paretune.data.pair_rows import completion_row, pair_row, unread
from paretune.data.sources import open_rows
from paretune.data.tokenization import (
    TokenSequence,
    tokenize_pairs,
    tokenize_responses,
)
from paretune.errors import InputError
from paretune.training.config import CommonConfig

logger = logging.getLogger(__name__)

Form = Literal["responses", "pairs", "texts"]
"""Of rows: with ``completion``, with ``chosen`` and ``rejected``, or with ``text``."""


@dataclass(frozen=True)
class PairSequence(TokenSequence):
    """A chosen response, with the one that it was preferred to."""

    rejected: TokenSequence

    @property
    def chosen(self) -> TokenSequence:
        """It alone."""
        return TokenSequence(self.input_ids, self.prompt_length)


def distinct(sequences: Iterable[TokenSequence]) -> list[TokenSequence]:
    """All responses, the chosen ones of pairs and the rejected ones too, each once."""
    found: dict[TokenSequence, None] = {}
    for each in sequences:
        if isinstance(each, PairSequence):
            found |= {each.chosen: None, each.rejected: None}
        else:
            found[each] = None
    return list(found)


def tokenize_rows(
    source: Any, tokenizer: Any, title: str, args: CommonConfig
) -> list[TokenSequence]:
    """The rows of a training set or criterion, whose form the first one tells.

    Rows have ``prompt`` and ``completion``; or ``prompt``, ``chosen`` and ``rejected``, which
    become `PairSequence`; or ``text``, of which each stretch of `args.max_length` tokens is a row
    whose first token is the prompt.

    Args:
        title: What they are, such as "training set 'news'"; for messages.

    Raises:
        InputError: rows that cannot be read, or none that is left; what is left out is told.
    """
    form, rows = _opened(source, title)
    if form == "pairs":
        return _pairs(rows, tokenizer, title, args)
    if form == "texts":
        return _texts(rows, tokenizer, title, args)
    sequences, dropped = tokenize_responses(rows, tokenizer, title, args.max_length, args.overlong)
    if dropped:
        logger.warning(
            "%d of %d rows of the %s are longer than max_length=%s and are left out.",
            dropped,
            dropped + len(sequences),
            title,
            args.max_length,
        )
    return sequences


def check_rows(source: Any, title: str) -> tuple[Form, int]:
    """See, without a tokenizer, that the rows can be read as `tokenize_rows` does.

    Returns:
        Their form, and how many of them differ.

    Raises:
        InputError: there are none, or one that cannot be read.
    """
    form, rows = _opened(source, title)
    seen: set[int] = set()
    for number, record in enumerate(rows, start=1):
        row: Any
        if form == "pairs":
            where = f"row {number} of the {title!r} pairs"
            unread(record, where)
            row = pair_row(record, 0, where)[:2]
        elif form == "texts":
            row = _text(record, number, title)
        else:
            row = completion_row(record, f"row {number} of the {title}")
        seen.add(hash(repr(row)))
    return form, len(seen)


def _opened(source: Any, title: str) -> tuple[Form, Iterator[Any]]:
    """The rows, and their form, which the first one tells."""
    rows = iter(open_rows(source))
    first = next(rows, None)
    if first is None:
        raise InputError(f"The {title} has no usable rows: it is empty.")
    columns = set(first) if isinstance(first, Mapping) else set()
    form: Form = "responses"
    if "completion" not in columns:
        form = "pairs" if "chosen" in columns else "texts" if "text" in columns else form
    return form, chain([first], rows)


def _pairs(rows: Any, tokenizer: Any, title: str, args: CommonConfig) -> list[TokenSequence]:
    data = tokenize_pairs({title: rows}, tokenizer, args.max_length, args.overlong)
    found: list[TokenSequence] = []
    index = data.pairs[title]
    for chosen, rejected in zip(index.chosen, index.rejected, strict=True):
        one = data.sequences[chosen]
        found.append(PairSequence(one.input_ids, one.prompt_length, data.sequences[rejected]))
    return found


def _texts(rows: Any, tokenizer: Any, title: str, args: CommonConfig) -> list[TokenSequence]:
    found: list[TokenSequence] = []
    for number, row in enumerate(rows, start=1):
        ids = tuple(tokenizer(_text(row, number, title))["input_ids"])
        size = args.max_length or len(ids)
        pieces = (ids[start : start + size] for start in range(0, len(ids), size))
        found += [TokenSequence(piece, 1) for piece in pieces if len(piece) > 1]
    if not found:
        raise InputError(f"The {title} has no usable rows: all have a single token.")
    return found


def _text(row: Any, number: int, title: str) -> str:
    text = row.get("text") if isinstance(row, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"In row {number} of the {title}, 'text' must be text, not {text!r}.")
    return text


def pairs_refused(method: str) -> InputError:
    """What is said where rows are pairs and the method has no loss for them."""
    return InputError(
        f"method={method!r} takes rows with prompt and completion, or text: for pairs use "
        "method='lookahead'."
    )
