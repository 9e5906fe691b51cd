"""Responses of training sets and of validation criteria: rows, batches, and their loss."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import xxhash
from torch import Tensor, nn
from torch.utils.data import Dataset

from paretune.data.sampling import cycled_order
from paretune.data.tokenization import TokenSequence, pad_sequences
from paretune.errors import InputError
from paretune.logprobs import sequence_logps

Rows = Mapping[str, Iterable[Mapping[str, Any]]]
"""Per name, rows with ``prompt`` and ``completion`` (strings, or lists of messages)."""


class Part(NamedTuple):
    """Which responses: those of a training set or of a validation criterion."""

    kind: Literal["set", "criterion"]
    name: str


Draw = dict[Part, dict[str, Tensor]]
"""Of each part some responses, as `pad_sequences` makes of them."""


def hold_out(
    parts: Mapping[Part, Sequence[TokenSequence]], share: float, seed: int
) -> tuple[dict[Part, list[TokenSequence]], dict[Part, list[TokenSequence]]]:
    """Divide the rows of each part in two, all of a prompt on one side.

    A prompt is on the same side in all parts. Where all have the same prompt, or one of a single
    token as plain texts do, whole sequences are divided.

    Args:
        share: About how much of the rows is in the second; 0 leaves all of them in both.
        seed: Of the draw.

    Raises:
        InputError: a part has too few prompts.
    """
    if share == 0:
        whole = {part: list(sequences) for part, sequences in parts.items()}
        return whole, dict(whole)
    kept: dict[Part, list[TokenSequence]] = {}
    held: dict[Part, list[TokenSequence]] = {}
    for part, sequences in parts.items():
        keys = [each.input_ids[: each.prompt_length] for each in sequences]
        if len(set(keys)) == 1 or all(len(key) == 1 for key in keys):
            keys = [each.input_ids for each in sequences]
        distinct = sorted(set(keys), key=lambda key: _digest(key, seed))
        if len(distinct) < 2:
            raise too_few(part.name)
        count = min(max(round(share * len(distinct)), 1), len(distinct) - 1)
        out = set(distinct[:count])
        kept[part] = [s for s, key in zip(sequences, keys, strict=True) if key not in out]
        held[part] = [s for s, key in zip(sequences, keys, strict=True) if key in out]
    return kept, held


def too_few(criterion: str) -> InputError:
    """What is said of a criterion's rows that cannot be divided."""
    return InputError(
        f"The validation set {criterion!r} has one row, and one half of a criterion's rows is held "
        "out: give it more, or set held_out=0."
    )


def _digest(key: tuple[int, ...], seed: int) -> bytes:
    return xxhash.xxh3_128_digest(f"{seed} {key}".encode())


@dataclass(frozen=True)
class Batches:
    """Micro-batches that stand for one batch.

    Attributes:
        draws: The micro-batches.
        rows: Per part, what sums over its responses are divided by.
    """

    draws: Sequence[Draw]
    rows: Mapping[Part, float]

    @staticmethod
    def of(draws: Sequence[Draw]) -> "Batches":
        """Micro-batches over whose responses means are taken."""
        parts = dict.fromkeys(part for draw in draws for part in draw)
        rows = {p: float(sum(len(d[p]["lengths"]) for d in draws if p in d)) for p in parts}
        return Batches(draws, rows)


class ResponseLoss(nn.Module):
    """The cross-entropy of each response per token, shape (N,), under a causal language model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        # Second derivatives may be asked for, which a chunked head does not have.
        return -sequence_logps(self.model, batch, chunked=False) / batch["lengths"]


class ResponseRows(Dataset[list[dict[Part, int]]]):
    """Training rows: one response of every part, or several draws of that.

    Each part is drawn on its own. An epoch ends with the largest; smaller ones start again in a
    new order, which differs from epoch to epoch.

    Args:
        parts: The responses of each.
        draws: How many independent draws a row holds.
        seed: Of the orders.
    """

    def __init__(
        self, parts: Mapping[Part, Sequence[TokenSequence]], draws: int = 1, seed: int = 0
    ) -> None:
        self.parts, self.draws, self.seed = dict(parts), draws, seed
        self._length = max(len(sequences) for sequences in self.parts.values())
        self._orders: dict[tuple[int, Part], list[int]] = {}
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the orders of an epoch."""
        keys = [(draw, part) for draw in range(self.draws) for part in self.parts]
        for position, key in enumerate(keys):
            seed = (self.seed * 1_000_003 + epoch) * 1_009 + position
            self._orders[key] = cycled_order(len(self.parts[key[1]]), self._length, seed)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> list[dict[Part, int]]:
        return [
            {part: self._orders[draw, part][row] for part in self.parts}
            for draw in range(self.draws)
        ]

    def collate(self, pad_token_id: int, rows: Sequence[list[dict[Part, int]]]) -> dict[str, Any]:
        """``{"draws": [Draw, ...]}`` of some rows."""
        return {
            "draws": [
                {
                    part: pad_sequences([sequences[row[d][part]] for row in rows], pad_token_id)
                    for part, sequences in self.parts.items()
                }
                for d in range(self.draws)
            ]
        }


def all_of(
    parts: Mapping[Part, Sequence[TokenSequence]],
    pad_token_id: int,
    size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Batches:
    """All responses, in micro-batches of `size` responses of one part each, of like length.

    With several processes each has its share, such that the means over processes of what it
    computes are those over all responses.
    """
    draws: list[Draw] = []
    for part, sequences in parts.items():
        ordered = sorted(sequences, key=lambda sequence: len(sequence.input_ids))
        draws += [
            {part: pad_sequences(ordered[start : start + size], pad_token_id)}
            for start in range(0, len(ordered), size)
        ]
    rows = {part: len(sequences) / world_size for part, sequences in parts.items()}
    return Batches(draws[rank::world_size], rows)
