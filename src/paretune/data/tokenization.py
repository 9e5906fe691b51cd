"""From preference pairs to token ids: each distinct sequence once, and the pairs as positions."""

import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from paretune.data.encoding import Encoder, Wanted
from paretune.data.messages import prompt_key
from paretune.data.pair_rows import PairRow, completion_row, pair_row, unread
from paretune.data.rows import records
from paretune.errors import InputError

logger = logging.getLogger(__name__)

Overlong = Literal["drop", "truncate"]

_BATCH = 256  # rows whose texts the tokenizer is given at once


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and one response: ``input_ids[prompt_length:]`` are the response's tokens."""

    input_ids: tuple[int, ...]
    prompt_length: int

    @property
    def completion_length(self) -> int:
        return len(self.input_ids) - self.prompt_length


@dataclass(frozen=True, eq=False)
class TokenTable(Sequence[TokenSequence]):
    """Token sequences end to end, four bytes a token; each is made when it is asked for.

    Attributes:
        tokens: ``(T,)`` int32, of all sequences.
        ends: ``(N,)`` int64, where each ends in `tokens`.
        prompt_lengths: ``(N,)`` int32.
    """

    tokens: NDArray[np.int32]
    ends: NDArray[np.int64]
    prompt_lengths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> TokenSequence: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenSequence]: ...
    def __getitem__(self, index: int | slice) -> TokenSequence | list[TokenSequence]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) if index else 0
        ids = self.tokens[start : self.ends[index]].tolist()
        return TokenSequence(tuple(ids), int(self.prompt_lengths[index]))

    def select(self, rows: Sequence[int]) -> "TokenTable":
        """These sequences, in this order."""
        ends = self.ends.tolist()
        parts = [self.tokens[ends[i - 1] if i else 0 : ends[i]] for i in rows]
        return TokenTable(
            np.concatenate(parts) if parts else self.tokens[:0],
            np.cumsum([len(part) for part in parts], dtype=np.int64),
            self.prompt_lengths[list(rows)],
        )


@dataclass
class PairIndex:
    """An objective's pairs: positions in the list of sequences, number of the prompt, weight.

    `row` is the pair's row in its data set, counting from 0; `offset`, where the loss has one
    (see `paretune.losses.dpo`), is a number for each pair.
    """

    chosen: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    offset: list[float] | None = None

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass
class PairCounts:
    """What became of an objective's pairs.

    Attributes:
        given: Rows of the data set.
        too_long: Left out for their length.
        equal: Left out because both responses are the same tokens.
        cut: Kept, with an end of a response cut off.
        unread: Per column that nobody reads, the rows that hold something there.
    """

    given: int = 0
    too_long: int = 0
    equal: int = 0
    cut: int = 0
    unread: Counter[str] = field(default_factory=Counter)

    @property
    def dropped(self) -> int:
        return self.too_long + self.equal

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {**asdict(self), "unread": dict(self.unread)}

    def tell(self, objective: str, max_length: int | None) -> None:
        """Log what was left out or changed."""
        told = {
            f"are longer than max_length={max_length} and are left out": self.too_long,
            "have two responses of the same tokens and are left out": self.equal,
            f"have a response cut off at max_length={max_length}": self.cut,
        }
        for what, count in told.items():
            if count:
                logger.warning("%d of %d pairs of %r %s.", count, self.given, objective, what)
        if self.unread:
            columns = ", ".join(self.unread)
            logger.warning("Of the pairs of %r nobody reads the columns %s.", objective, columns)


@dataclass
class TokenizedPairs:
    """All objectives' pairs over one list of distinct sequences.

    Attributes:
        sequences: Distinct sequences; a response that several objectives label stands here once.
        pairs: Per objective, its pairs as positions in ``sequences``.
        reference: ``(len(sequences),)`` float32 log-probabilities of the responses under the
            reference model, summed over response tokens; None until they are computed.
        counts: Per objective, how many pairs were left out or cut, and why.
        remarks: What was logged about the chat template.
    """

    sequences: Sequence[TokenSequence]
    pairs: dict[str, PairIndex]
    reference: Tensor | None = None
    counts: dict[str, PairCounts] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def tokenize_pairs(
    datasets: Mapping[str, Iterable[Mapping[str, Any]]],
    tokenizer: Any,
    max_length: int | None = None,
    overlong: Overlong = "drop",
) -> TokenizedPairs:
    """Tokenise every objective's pairs, keeping each distinct sequence once.

    What is left out is counted and logged.

    Args:
        datasets: Per objective, rows with ``prompt``, ``chosen``, ``rejected`` (strings, or lists
            of messages) and optionally ``weight``, ``tools`` and ``chat_template_kwargs``.
        tokenizer: A transformers tokenizer; conversational rows need its chat template.
        max_length: Longest allowed prompt plus response, in tokens.
        overlong: Whether a pair with a longer side is dropped (and counted) or has the end of its
            responses cut off. Prompts are never cut.

    Raises:
        InputError: for a row without a response, two equal responses, a non-positive weight, or
            an objective left without pairs.
    """
    prompts: dict[bytes, int] = {}
    sides = _Sides(tokenizer, max_length, overlong)
    used: dict[int, int] = {}  # numbers in the table of sides, by first use in a pair
    result = TokenizedPairs(sequences=[], pairs={})
    for objective, rows in datasets.items():
        index, counts = PairIndex(), PairCounts()
        for pair, (chosen, rejected) in _encoded(rows, objective, sides, counts):
            too_long = chosen.too_long or rejected.too_long
            equal = chosen.number == rejected.number
            counts.cut += bool(chosen.cut or rejected.cut) and not (too_long or equal)
            if too_long or equal:
                counts.too_long += too_long
                counts.equal += not too_long
                continue
            index.chosen.append(used.setdefault(chosen.number, len(used)))
            index.rejected.append(used.setdefault(rejected.number, len(used)))
            key = _digest(prompt_key(pair.prompt))
            index.prompt.append(prompts.setdefault(key, len(prompts)))
            index.weight.append(pair.weight)
            index.row.append(pair.row)
        if not len(index):
            reason = _why_none(counts, max_length)
            raise InputError(f"The data of objective {objective!r} has no usable pairs: {reason}.")
        counts.tell(objective, max_length)
        result.pairs[objective], result.counts[objective] = index, counts
    table, order = sides.table(), list(used)
    result.sequences = table if order == list(range(len(table))) else table.select(order)
    result.remarks = sides.remarks
    return result


def _encoded(
    rows: Iterable[Mapping[str, Any]], objective: str, sides: "_Sides", counts: PairCounts
) -> Iterator[tuple[PairRow, tuple["_Side", "_Side"]]]:
    """Each row with its two sides; counts rows and columns that nobody reads."""
    numbered = enumerate(records(rows))
    while True:
        pairs: list[PairRow] = []
        failure: InputError | None = None
        for row, record in islice(numbered, _BATCH):
            where = f"row {row + 1} of the {objective!r} pairs"
            counts.given += 1
            try:
                counts.unread.update(unread(record, where))
                pairs.append(pair_row(record, row, where))
            except InputError as error:  # after what may be wrong with those before
                failure = error
                break
        found = sides.find(pairs)
        yield from zip(pairs, zip(found[::2], found[1::2], strict=True), strict=True)
        if failure is not None:
            raise failure
        if len(pairs) < _BATCH:
            return


class _Side(NamedTuple):
    """A prompt with one response: its number among the distinct ones, −1 where it is too long,
    and whether it was cut."""

    number: int
    cut: int

    @property
    def too_long(self) -> bool:
        return self.number < 0


class _Sides:
    """Prompts with a response as tokens: each distinct text is tokenised once."""

    def __init__(self, tokenizer: Any, max_length: int | None, overlong: Overlong) -> None:
        self._encoder = Encoder(tokenizer)
        self._max_length, self._overlong = max_length, overlong
        self._by_text: dict[bytes, int] = {}  # as integers, of which there may be very many
        self._by_tokens: dict[bytes, int] = {}
        self._tokens, self._ends, self._prompt_lengths = array("i"), array("q"), array("i")

    def find(self, pairs: Sequence[PairRow]) -> list[_Side]:
        """The two sides of each pair, one after the other.

        Raises:
            InputError: see `Encoder.responses`; or a response has no tokens.
        """
        wanted = [
            Wanted(pair.prompt, answer, pair.where) for pair in pairs for answer in pair.responses
        ]
        keys = [_digest(repr(each[:2])) for each in wanted]
        new: dict[bytes, Wanted] = {}
        for key, each in zip(keys, wanted, strict=True):
            if key not in self._by_text:
                new.setdefault(key, each)
        encoded = self._encoder.responses(list(new.values()))
        for (key, each), (before, after) in zip(new.items(), encoded, strict=True):
            side = self._add(_joined(each, before, after), len(before))
            self._by_text[key] = 2 * side.number + side.cut
        return [_Side(*divmod(self._by_text[key], 2)) for key in keys]

    def table(self) -> TokenTable:
        """The distinct sequences."""
        return TokenTable(
            np.asarray(self._tokens, np.int32),
            np.asarray(self._ends, np.int64),
            np.asarray(self._prompt_lengths, np.int32),
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(self._encoder.template.told.values())

    def _add(self, ids: "array[int]", prompt_length: int) -> _Side:
        limit = len(ids) if self._max_length is None else self._max_length
        cut = len(ids) > limit
        if cut and (self._overlong == "drop" or prompt_length >= limit):
            return _Side(-1, cut)
        ids = ids[:limit]
        key = _digest(ids.tobytes() + prompt_length.to_bytes(8))
        number = self._by_tokens.setdefault(key, len(self._by_tokens))
        if number == len(self._ends):
            self._tokens.extend(ids)
            self._ends.append(len(self._tokens))
            self._prompt_lengths.append(prompt_length)
        return _Side(number, cut)


def _joined(wanted: Wanted, before: Sequence[int], after: Sequence[int]) -> "array[int]":
    if not after:
        raise InputError(
            f"In {wanted.where}, the response {wanted.response!r} has no tokens of its own."
        )
    ids = array("i", before)
    ids.extend(after)
    return ids


def _digest(content: str | bytes) -> bytes:
    return xxhash.xxh3_128_digest(content.encode() if isinstance(content, str) else content)


def tokenize_responses(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    name: str,
    max_length: int | None = None,
    overlong: Overlong = "drop",
) -> tuple[list[TokenSequence], int]:
    """Tokenise responses, and count those that are left out for their length.

    Args:
        rows: With ``prompt`` and ``completion``, strings or lists of messages.
        tokenizer, max_length, overlong: As in `tokenize_pairs`.
        name: What the rows are, such as "training set 'news'"; for messages.

    Raises:
        InputError: for a row without a response, or when none is left.
    """
    sequences: list[TokenSequence] = []
    encoder = Encoder(tokenizer)
    numbered = enumerate(records(rows), start=1)
    row = 0
    while batch := list(islice(numbered, _BATCH)):
        wanted = []
        for row, record in batch:
            where = f"row {row} of the {name}"
            wanted.append(Wanted(*completion_row(record, where), where))
        for each, (before, after) in zip(wanted, encoder.responses(wanted), strict=True):
            ids = _joined(each, before, after)
            if max_length is not None and overlong == "truncate":
                ids = ids[:max_length]
            if (max_length is None or len(ids) <= max_length) and len(ids) > len(before):
                sequences.append(TokenSequence(tuple(ids), len(before)))
    if not sequences:
        reason = f"all {row} rows are longer than max_length={max_length}" if row else "it is empty"
        raise InputError(f"The {name} has no usable rows: {reason}.")
    return sequences, row - len(sequences)


def _why_none(counts: PairCounts, max_length: int | None) -> str:
    if not counts.given:
        return "it is empty"
    if not counts.equal:
        return f"all {counts.given} are longer than max_length={max_length}"
    if not counts.too_long:
        return f"all {counts.given} have two responses of the same tokens"
    return (
        f"{counts.too_long} are longer than max_length={max_length}, and {counts.equal} have two "
        "responses of the same tokens"
    )


def pad_sequences(sequences: Sequence[TokenSequence], pad_token_id: int) -> dict[str, Tensor]:
    """Right-pad to a batch: ``input_ids``, ``attention_mask`` and ``completion_mask`` of shape
    ``(N, L)``, and ``lengths`` ``(N,)``, the numbers of response tokens."""
    width = max(len(sequence.input_ids) for sequence in sequences)
    input_ids = torch.full((len(sequences), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    completion_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        length = len(sequence.input_ids)
        input_ids[row, :length] = torch.tensor(sequence.input_ids)
        attention_mask[row, :length] = 1
        completion_mask[row, sequence.prompt_length : length] = True
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "completion_mask": completion_mask,
        "lengths": completion_mask.sum(1),
    }
