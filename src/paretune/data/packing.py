"""Batches without padding: each distinct prompt once, then the responses one after another."""

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from paretune.data.tokenization import TokenSequence


@dataclass(frozen=True)
class Segments:
    """Stretches of T tokens in all, in one row.

    Attributes:
        input_ids, position_ids: ``(1, T)``; positions are those in the whole sequence.
        sequence: ``(T,)``, which sequence of the batch a token is of; of a prompt that several
            share, the first.
        lengths: Of each stretch.
    """

    input_ids: Tensor
    position_ids: Tensor
    sequence: Tensor
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.input_ids.shape[1])

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        names = ("input_ids", "position_ids", "sequence")
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names}
        return replace(self, **moved)


@dataclass(frozen=True)
class PackedBatch:
    """N sequences as two rows: the prompts without their last tokens, and what follows them.

    The last token of a prompt stands with each of its responses, whose own last token is not
    read: every position of the second row predicts one response token.

    Attributes:
        sequences: What was packed.
        owners: Sequences share a prompt only where their owners are equal.
        prompts: The first row, a stretch for each distinct prompt; one may be empty.
        responses: The second row, a stretch for each sequence, in order.
        members: Per prompt, its sequences.
        source: ``(E,)``, for each sequence in turn the positions of its prompt in the first row.
        source_lengths: How many those are, for each sequence.
        targets: ``(T,)``, the tokens that the second row predicts.
    """

    sequences: tuple[TokenSequence, ...]
    owners: tuple[Hashable, ...]
    prompts: Segments
    responses: Segments
    members: tuple[tuple[int, ...], ...]
    source: Tensor
    source_lengths: tuple[int, ...]
    targets: Tensor

    @property
    def tokens(self) -> int:
        """How many tokens are read: ``Σ_prompts (P - 1) + Σ_responses R``."""
        return self.prompts.tokens + self.responses.tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(sequence.input_ids) for sequence in self.sequences)

    def tokens_of(self, chosen: Collection[int]) -> int:
        """How many tokens are read for some of the sequences."""
        prompts = sum(
            length
            for length, members in zip(self.prompts.lengths, self.members, strict=True)
            if not set(members).isdisjoint(chosen)
        )
        return prompts + sum(self.responses.lengths[i] for i in chosen)

    def select(self, chosen: Sequence[int]) -> "PackedBatch":
        """Some of the sequences, in the order given."""
        return pack([self.sequences[i] for i in chosen], [self.owners[i] for i in chosen]).to(
            self.targets.device
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """On another device; the name is what accelerate asks for."""
        names = ("prompts", "responses", "source", "targets")
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names}
        return replace(self, **moved)


def pack(
    sequences: Sequence[TokenSequence], owners: Sequence[Hashable] | None = None
) -> PackedBatch:
    """Pack sequences; those of one owner that begin alike up to their response share that."""
    owners = (None,) * len(sequences) if owners is None else tuple(owners)
    groups: dict[tuple[Hashable, tuple[int, ...]], list[int]] = {}
    starts = [max(sequence.prompt_length - 1, 0) for sequence in sequences]
    for i, (sequence, start, owner) in enumerate(zip(sequences, starts, owners, strict=True)):
        groups.setdefault((owner, sequence.input_ids[:start]), []).append(i)
    place, at = {}, 0
    for (_, prompt), members in groups.items():
        place.update(dict.fromkeys(members, range(at, at + len(prompt))))
        at += len(prompt)
    prompts = [(members[0], 0, prompt) for (_, prompt), members in groups.items()]
    responses = [
        (i, start, sequence.input_ids[start:-1])
        for i, (sequence, start) in enumerate(zip(sequences, starts, strict=True))
    ]
    targets = [
        t for s, start in zip(sequences, starts, strict=True) for t in s.input_ids[start + 1 :]
    ]
    return PackedBatch(
        sequences=tuple(sequences),
        owners=owners,
        prompts=_segments(prompts),
        responses=_segments(responses),
        members=tuple(tuple(members) for members in groups.values()),
        source=_whole(p for i in range(len(sequences)) for p in place[i]),
        source_lengths=tuple(starts),
        targets=_whole(targets),
    )


def _segments(parts: Sequence[tuple[int, int, tuple[int, ...]]]) -> Segments:
    """Of (sequence, first position, tokens) each."""
    return Segments(
        input_ids=_whole(t for *_, ids in parts for t in ids)[None],
        position_ids=_whole(p for _, at, ids in parts for p in range(at, at + len(ids)))[None],
        sequence=_whole(i for i, _, ids in parts for _ in ids),
        lengths=tuple(len(ids) for *_, ids in parts),
    )


def _whole(numbers: Iterable[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.long)
