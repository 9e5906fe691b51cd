"""Rows of training sets and criteria, in any of three forms, as token sequences."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from paretune.data.sources import open_rows
from paretune.data.tokenization import (
    TokenSequence,
    tokenize_pairs,
    tokenize_responses,
)
from paretune.errors import InputError
from paretune.training.config import CommonConfig

logger = logging.getLogger(__name__)


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
    rows = iter(open_rows(source))
    first = next(rows, None)
    if first is None:
        raise InputError(f"The {title} has no usable rows: it is empty.")
    rows = chain([first], rows)
    columns = set(first) if isinstance(first, Mapping) else set()
    if "chosen" in columns and "completion" not in columns:
        return _pairs(rows, tokenizer, title, args)
    if "text" in columns and "completion" not in columns:
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
        text = row.get("text") if isinstance(row, Mapping) else None
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"In row {number} of the {title}, 'text' must be text, not {text!r}.")
        ids = tuple(tokenizer(text)["input_ids"])
        size = args.max_length or len(ids)
        pieces = (ids[start : start + size] for start in range(0, len(ids), size))
        found += [TokenSequence(piece, 1) for piece in pieces if len(piece) > 1]
    if not found:
        raise InputError(f"The {title} has no usable rows: all have a single token.")
    return found
