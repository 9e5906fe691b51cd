"""From preference pairs to token ids: each distinct sequence once, and the pairs as positions."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from paretune.data.encoding import Encoder
from paretune.data.messages import OPTIONS, TOOLS, Text, prompt_key, with_option
from paretune.errors import InputError

logger = logging.getLogger(__name__)

Overlong = Literal["drop", "truncate"]

_COLUMNS = ("prompt", "chosen", "rejected", "completion", "weight", TOOLS, OPTIONS)
_NOT_TEXT = ("image", "images", "audio", "audios", "video", "videos")


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and one response: ``input_ids[prompt_length:]`` are the response's tokens."""

    input_ids: tuple[int, ...]
    prompt_length: int

    @property
    def completion_length(self) -> int:
        return len(self.input_ids) - self.prompt_length


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
    """

    sequences: list[TokenSequence]
    pairs: dict[str, PairIndex]
    reference: Tensor | None = None
    counts: dict[str, PairCounts] = field(default_factory=dict)


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
    table: dict[TokenSequence, int] = {}
    prompts: dict[str, int] = {}
    encoder = Encoder(tokenizer)
    result = TokenizedPairs(sequences=[], pairs={})
    for objective, rows in datasets.items():
        index, counts = PairIndex(), PairCounts()
        for row, record in enumerate(rows):
            where = f"row {row + 1} of the {objective!r} pairs"
            counts.given += 1
            counts.unread.update(_unread(record, where))
            prompt = _prompt(record, where)
            sides = [_response(record, side, where) for side in ("chosen", "rejected")]
            if sides[0] == sides[1]:
                raise InputError(f"In {where}, chosen and rejected are the same: remove the row.")
            both = [_encode(encoder, prompt, side, where) for side in sides]
            if (too_long := _exceed(both, max_length)) and overlong == "truncate":
                both = [_cut(sequence, max_length) for sequence in both]
                too_long = not all(sequence.completion_length > 0 for sequence in both)
                counts.cut += not too_long and both[0] != both[1]
            if too_long or both[0] == both[1]:
                counts.too_long += too_long
                counts.equal += not too_long
                continue
            chosen, rejected = (table.setdefault(sequence, len(table)) for sequence in both)
            index.chosen.append(chosen)
            index.rejected.append(rejected)
            index.prompt.append(prompts.setdefault(prompt_key(prompt), len(prompts)))
            index.weight.append(_weight(record, where))
            index.row.append(row)
        if not len(index):
            reason = _why_none(counts, max_length)
            raise InputError(f"The data of objective {objective!r} has no usable pairs: {reason}.")
        counts.tell(objective, max_length)
        result.pairs[objective], result.counts[objective] = index, counts
    result.sequences = list(table)
    return result


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
    row = 0
    for row, record in enumerate(rows, start=1):
        where = f"row {row} of the {name}"
        response = _response(record, "completion", where)
        sequence = _encode(encoder, _prompt(record, where), response, where)
        if max_length is not None and overlong == "truncate":
            sequence = _cut(sequence, max_length)
        fits = max_length is None or len(sequence.input_ids) <= max_length
        if fits and sequence.completion_length > 0:
            sequences.append(sequence)
    if not sequences:
        reason = f"all {row} rows are longer than max_length={max_length}" if row else "it is empty"
        raise InputError(f"The {name} has no usable rows: {reason}.")
    return sequences, row - len(sequences)


def _exceed(sequences: Iterable[TokenSequence], max_length: int | None) -> bool:
    return max_length is not None and any(len(s.input_ids) > max_length for s in sequences)


def _cut(sequence: TokenSequence, max_length: int | None) -> TokenSequence:
    return TokenSequence(sequence.input_ids[:max_length], sequence.prompt_length)


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


def _unread(record: Mapping[str, Any], where: str) -> list[str]:
    unread = [key for key in record if key not in _COLUMNS and record[key] is not None]
    for key in unread:
        if key in _NOT_TEXT:
            raise InputError(f"In {where}, {key!r} cannot be trained on: only text can.")
    return unread


def _prompt(record: Mapping[str, Any], where: str) -> Text:
    """The prompt with the tools and template's options that stand beside it."""
    prompt: Any = record.get("prompt")
    if not prompt:
        raise InputError(f"In {where}, 'prompt' is missing or empty.")
    for name in (TOOLS, OPTIONS):
        if record.get(name):
            if isinstance(prompt, str):
                raise InputError(f"In {where}, {name!r} needs prompts that are messages.")
            prompt = with_option(prompt, name, record[name])
    return prompt  # type: ignore[no-any-return]


def _weight(record: Mapping[str, Any], where: str) -> float:
    weight = record.get("weight")
    if weight is None:
        return 1.0
    if not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise InputError(f"In {where}, weight must be a positive number, not {weight!r}.")
    return float(weight)


def _response(record: Mapping[str, Any], side: str, where: str) -> Text:
    response: Text | None = record.get(side)
    if not response:
        raise InputError(f"In {where}, {side!r} is missing or empty.")
    return response


def _encode(encoder: Encoder, prompt: Text, response: Text, where: str) -> TokenSequence:
    before, after = encoder.response(prompt, response, where)
    if not after:
        raise InputError(f"In {where}, the response {response!r} has no tokens of its own.")
    return TokenSequence((*before, *after), len(before))


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
