"""Splitting by prompt, so that no prompt is trained on and tested on."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Literal

from paretune.data.messages import prompt_key
from paretune.data.records import PreferenceData, describe_pairs
from paretune.data.rows import records
from paretune.errors import InputError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_RATINGS = ""  # no objective is called so


def split_by_prompt(
    data: PreferenceData, fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0
) -> dict[Split, PreferenceData]:
    """Split into train, validation and test by prompt, 8:1:1 by default (CLAMP, Appendix C.2).

    All pairs and ratings of a prompt, of every objective, go to one split. Prompts that differ in
    white space only are one prompt. Prompts are ordered by a hash of their text and the seed, so
    the split does not depend on the order of rows.

    Args:
        data: What to split.
        fractions: Shares of the prompts; positive, with sum 1. Validation and test get at least
            one prompt each.
        seed: Another seed, another split.

    Returns:
        The splits; their ``counts`` are those of `~paretune.data.records.describe_pairs`.

    Raises:
        InputError: fractions that are not shares, or a split that would leave an objective
            without pairs.
    """
    if (
        len(fractions) != 3
        or not all(0 < f < 1 for f in fractions)
        or not math.isclose(sum(fractions), 1)
    ):
        raise InputError(f"fractions must be three positive shares with sum 1, not {fractions}.")
    tables = dict(data.pairs)
    if data.ratings is not None:
        tables[_RATINGS] = data.ratings
    keys = {
        name: [prompt_key(row["prompt"]) for row in records(table.select_columns("prompt"))]
        for name, table in tables.items()
    }
    assignment = _assign({key for column in keys.values() for key in column}, fractions, seed)
    result: dict[Split, PreferenceData] = {}
    for split in SPLITS:
        parts = {
            name: table.select([i for i, key in enumerate(keys[name]) if assignment[key] == split])
            for name, table in tables.items()
        }
        ratings = parts.pop(_RATINGS, None)
        for name, pairs in parts.items():
            if not len(pairs):
                raise InputError(
                    f"The {split} split has no pairs of objective {name!r} ({len(assignment)} "
                    "prompts in all): give more data, larger fractions or another seed."
                )
        result[split] = PreferenceData(parts, describe_pairs(parts), ratings)
    return result


def _assign(prompts: Iterable[str], fractions: Sequence[float], seed: int) -> dict[str, Split]:
    def order(prompt: str) -> bytes:
        return hashlib.sha256(f"{seed} {prompt}".encode()).digest()

    shuffled = sorted(prompts, key=order)
    validation, test = (max(1, round(share * len(shuffled))) for share in fractions[1:])
    train = max(0, len(shuffled) - validation - test)
    sizes: dict[Split, int] = {"train": train, "validation": validation, "test": test}
    labels = [split for split, size in sizes.items() for _ in range(size)]
    return dict(zip(shuffled, labels, strict=False))  # too few prompts: a split stays empty
