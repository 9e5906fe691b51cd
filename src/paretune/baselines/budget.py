"""The budget that all methods share: tokens that training puts through the policy at one point."""

import math
from collections.abc import Sequence
from typing import Any

from paretune.baselines.context import Context
from paretune.data.sampling import PairRows
from paretune.data.token_cache import cached_pairs
from paretune.data.tokenization import TokenizedPairs
from paretune.experiment.setup import training_arguments
from paretune.moo.preference import Preference
from paretune.training import MultiObjectiveConfig


def policy_tokens(context: Context, preference: Preference, tokenizer: Any) -> int:
    """Tokens of the recipe's steps of training on preference pairs at a point, as expected.

    Steps times rows a step times the mean tokens of a row, a sequence that several objectives
    label counted once. Early stopping can leave part of it unspent.
    """
    args = training_arguments(context.recipe, preference, context.seed, context.folder)
    pairs = context.splits["train"].pairs
    named = {name: pairs[name] for name in preference.names}
    data = cached_pairs(args.token_cache, named, tokenizer, args.max_length, args.overlong)
    rows = PairRows(data, preference.live, args.sampling, args.seed)
    tokens = mean_row_tokens(data, rows, preference.live)
    return round(training_steps(args, len(rows)) * rows_per_step(args) * tokens)


def training_steps(args: MultiObjectiveConfig, rows: int) -> int:
    """Optimiser steps of a training on so many rows."""
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * math.ceil(rows / rows_per_step(args)))


def rows_per_step(args: MultiObjectiveConfig) -> int:
    """Rows that one optimiser step sees, over micro-batches and processes."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def mean_row_tokens(data: TokenizedPairs, rows: PairRows, objectives: Sequence[str]) -> float:
    """Mean number of tokens in the distinct sequences of these objectives in a row."""
    total = 0
    for number in range(len(rows)):
        row = rows[number]
        sides = [(data.pairs[name], row[name]) for name in objectives]
        distinct = {side[i] for index, i in sides for side in (index.chosen, index.rejected)}
        total += sum(len(data.sequences[sequence].input_ids) for sequence in distinct)
    return total / len(rows)
