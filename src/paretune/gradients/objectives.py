"""From response log-probabilities to the M losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paretune.losses import PreferenceLoss, Scored

Batch = Mapping[str, Any]


def loss_sums(
    logps: Tensor, batch: Batch, losses: Mapping[str, PreferenceLoss]
) -> tuple[Tensor, Tensor]:
    """Weighted sums of the pairs' losses and of their weights, each ``(M,)``.

    Where pairs have a ``total`` ``(B,)``, sums of that take the place of sums of the weights.

    Args:
        logps: ``(N,)`` log-probabilities of the batch's sequences.
        batch: As `PairCollator` makes it.
        losses: Per objective its loss; the order is that of the result.
    """
    responses = Scored(logps, batch["lengths"], batch.get("reference"))
    sums, totals = [], []
    for name, loss in losses.items():
        pairs = batch["pairs"][name]
        sides = responses[pairs["chosen"]], responses[pairs["rejected"]]
        values = loss(*sides, pairs.get("offset"))
        sums.append((pairs["weight"] * values).sum())
        totals.append(pairs.get("total", pairs["weight"]).sum())
    return torch.stack(sums), torch.stack(totals)


def restrict(batch: Batch, objective: str) -> Batch:
    """The batch with one objective's pairs and the sequences they need, padding trimmed.

    Where sequences belong to rows (``row``), the model treats each by its place: all stay.
    """
    pairs = batch["pairs"][objective]
    if "row" in batch:
        return {**batch, "pairs": {objective: pairs}}
    used, inverse = torch.cat([pairs["chosen"], pairs["rejected"]]).unique(return_inverse=True)
    chosen, rejected = inverse.chunk(2)
    width = int(batch["attention_mask"][used].sum(1).max())
    restricted: dict[str, Any] = {
        name: batch[name][used, :width]
        for name in ("input_ids", "attention_mask", "completion_mask")
    }
    for name in ("lengths", "reference"):
        if name in batch:
            restricted[name] = batch[name][used]
    return {**restricted, "pairs": {objective: {**pairs, "chosen": chosen, "rejected": rejected}}}


def all_shared(batch: Batch, objectives: Sequence[str]) -> bool:
    """Whether every objective's pairs use every sequence of the batch."""
    n = batch["input_ids"].shape[0]
    pairs = (batch["pairs"][name] for name in objectives)
    return all(torch.cat([p["chosen"], p["rejected"]]).unique().numel() == n for p in pairs)
