"""Which pairs make a training row, and how rows become a batch of distinct sequences."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from paretune.data.packing import pack
from paretune.data.tokenization import PairIndex, TokenizedPairs, pad_sequences
from paretune.errors import InputError

logger = logging.getLogger(__name__)

Sampling = Literal["auto", "joint", "independent"]
Row = dict[str, int]
"""Per objective, the position of its pair."""

_JOINT_SHARE = 0.5  # "auto" takes joint rows when they keep at least this share of the pairs


class PairRows(Dataset[Row]):
    """Training rows, each with one pair of every objective that is trained.

    Joint rows hold the objectives' pairs of the same prompt (the same two responses where there
    are such), so their sequences are shared. Independent rows are drawn for each objective on its
    own, as in Algorithm 1 of the CLAMP paper: an epoch ends with the longest data set, and shorter
    ones start again in a new order, which differs from epoch to epoch.

    Args:
        data: Tokenised pairs of all objectives.
        objectives: Those to train (the ones with a positive preference weight).
        sampling: ``"auto"`` takes joint rows when they keep at least half of the pairs of the
            objective that has most.
        seed: Of the independent orders.

    Attributes:
        unmatched: Per objective, its pairs that joint rows leave out; empty for independent ones.
    """

    def __init__(
        self,
        data: TokenizedPairs,
        objectives: Sequence[str],
        sampling: Sampling = "auto",
        seed: int = 0,
    ) -> None:
        self.objectives = tuple(objectives)
        self.seed = seed
        self._sizes = {name: len(data.pairs[name]) for name in objectives}
        self.unmatched: dict[str, int] = {}
        self._rows: list[Row] | None = None
        self._orders: dict[str, list[int]] = {}
        if sampling != "independent":
            rows = joint_rows(data, objectives)
            largest = max(self._sizes.values())
            if sampling == "joint" or len(rows) >= _JOINT_SHARE * largest:
                if not rows:
                    raise no_joint_rows()
                self._rows = rows
                left = {name: size - len(rows) for name, size in self._sizes.items()}
                self.unmatched = {name: count for name, count in left.items() if count}
                for name, count in self.unmatched.items():
                    logger.warning(
                        "%d of %d pairs of %r have no counterpart of every other objective on "
                        "their prompt and are left out of joint rows (sampling='independent' "
                        "takes all).",
                        count,
                        self._sizes[name],
                        name,
                    )
        if self._rows is None:
            self.set_epoch(0)

    @property
    def joint(self) -> bool:
        """Whether the rows are joint."""
        return self._rows is not None

    def set_epoch(self, epoch: int) -> None:
        """Draw the independent orders of an epoch; called by the data loader."""
        if self._rows is not None:
            return
        longest = max(self._sizes.values())
        for position, (name, size) in enumerate(self._sizes.items()):
            seed = (self.seed * 1_000_003 + epoch) * 1_009 + position
            self._orders[name] = cycled_order(size, longest, seed)

    def __len__(self) -> int:
        return len(self._rows) if self._rows is not None else max(self._sizes.values())

    def __getitem__(self, row: int) -> Row:
        if self._rows is not None:
            return self._rows[row]
        return {name: order[row] for name, order in self._orders.items()}


def no_joint_rows() -> InputError:
    """What is said where no prompt has a pair of every objective."""
    return InputError(
        "sampling='joint' needs prompts that every objective labels, and there are none: use "
        "sampling='independent'."
    )


def cycled_order(size: int, length: int, seed: int) -> list[int]:
    """`length` of the numbers below `size`: one random order of all of them after another."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-length // size)
    order = [torch.randperm(size, generator=generator) for _ in range(rounds)]
    return torch.cat(order)[:length].tolist()


def joint_rows(data: TokenizedPairs, objectives: Sequence[str]) -> list[Row]:
    """Rows of pairs on the same prompt, one of each objective.

    Pairs of the same two responses are put together first; what is left on a prompt is put
    together in order. Pairs for which some objective has no counterpart make no row.
    """
    by_prompt: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name in objectives:
        for position, prompt in enumerate(data.pairs[name].prompt):
            by_prompt[prompt][name].append(position)
    complete = [lists for lists in by_prompt.values() if len(lists) == len(objectives)]
    return [row for lists in complete for row in _match(data.pairs, lists)]


def _match(pairs: Mapping[str, PairIndex], lists: Mapping[str, list[int]]) -> list[Row]:
    def responses(name: str, position: int) -> tuple[int, int]:
        chosen, rejected = pairs[name].chosen[position], pairs[name].rejected[position]
        return min(chosen, rejected), max(chosen, rejected)

    by_pair = {
        name: {responses(name, position): position for position in positions}
        for name, positions in lists.items()
    }
    first = next(iter(by_pair.values()))
    shared = [key for key in first if all(key in found for found in by_pair.values())]
    rows = [{name: found[key] for name, found in by_pair.items()} for key in shared]
    taken = {name: {row[name] for row in rows} for name in lists}
    rest = [[i for i in positions if i not in taken[name]] for name, positions in lists.items()]
    return rows + [dict(zip(lists, group, strict=True)) for group in zip(*rest, strict=False)]


class PairCollator:
    """Turns rows into a batch in which each distinct sequence stands once.

    Returns the tensors of `pad_sequences`, the same sequences as a ``packed`` batch, ``reference``
    ``(N,)`` where the data has it, and ``pairs``: per objective ``chosen`` and ``rejected``
    ``(B,)``, positions among the N sequences, ``weight`` ``(B,)``, and ``offset`` ``(B,)`` where
    the data has it.

    Args:
        by_row: A sequence stands once in each row that has it, and ``row`` ``(N,)`` says in which;
            rows share no prompts.
    """

    def __init__(self, data: TokenizedPairs, pad_token_id: int, by_row: bool = False) -> None:
        self.data, self.pad_token_id, self.by_row = data, pad_token_id, by_row

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        position: dict[tuple[int, int], int] = {}
        pairs = {}
        for name in rows[0]:
            index = self.data.pairs[name]
            chosen, rejected = (
                [
                    position.setdefault((n if self.by_row else 0, side[row[name]]), len(position))
                    for n, row in enumerate(rows)
                ]
                for side in (index.chosen, index.rejected)
            )
            pairs[name] = {
                "chosen": torch.tensor(chosen),
                "rejected": torch.tensor(rejected),
                "weight": torch.tensor([index.weight[row[name]] for row in rows]),
            }
            if index.offset is not None:
                pairs[name]["offset"] = torch.tensor([index.offset[row[name]] for row in rows])
        sequences = [self.data.sequences[i] for _, i in position]
        batch: dict[str, Any] = dict(pad_sequences(sequences, self.pad_token_id))
        batch["packed"] = pack(sequences, [row for row, _ in position])
        if self.by_row:
            batch["row"] = torch.tensor([n for n, _ in position])
        if self.data.reference is not None:
            batch["reference"] = self.data.reference[[i for _, i in position]]
        return {**batch, "pairs": pairs}
