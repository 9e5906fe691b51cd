"""From response log-probabilities to the M losses."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paretune.data.packing import PackedBatch
from paretune.losses import PreferenceLoss, Scored

Batch = Mapping[str, Any]

_SMALL = 1e-6  # of a factor, beside the largest: rounding of float32 weights
_TINY = 1e-300


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


def restrict(batch: Batch, *objectives: str) -> Batch:
    """The batch with some objectives' pairs and the sequences they need, padding trimmed.

    Where sequences belong to rows (``row``), the model treats each by its place: all stay.
    """
    kept = {name: batch["pairs"][name] for name in objectives}
    if "row" in batch:
        return {**batch, "pairs": kept}
    sides = [pairs[side] for pairs in kept.values() for side in ("chosen", "rejected")]
    used, inverse = torch.cat(sides).unique(return_inverse=True)
    width = int(batch["attention_mask"][used].sum(1).max())
    restricted: dict[str, Any] = {
        name: batch[name][used, :width]
        for name in ("input_ids", "attention_mask", "completion_mask")
    }
    for name in ("lengths", "reference"):
        if name in batch:
            restricted[name] = batch[name][used]
    if "packed" in batch:
        restricted["packed"] = batch["packed"].select(used.tolist())
    places = iter(inverse.split([len(side) for side in sides]))
    pairs = {
        name: {**each, "chosen": next(places), "rejected": next(places)}
        for name, each in kept.items()
    }
    return {**restricted, "pairs": pairs}


def cotangents(
    logps: Tensor, batch: Batch, losses: Mapping[str, PreferenceLoss]
) -> tuple[Tensor, Tensor, Tensor]:
    """``W[m, i] = ∂f^m / ∂ℓ_i``, ``(M, N)``, with the sums of `loss_sums`."""
    leaf = logps.detach().requires_grad_()
    sums, totals = loss_sums(leaf, batch, losses)
    rows = [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in sums]
    return torch.stack(rows), sums, totals


def prompt_factors(
    weights: Tensor, members: Sequence[Sequence[int]]
) -> list[tuple[Tensor, Tensor]]:
    """Factors of W within each prompt, ``W[m, i] = Σ_k s_k[m, i] c_k[i]``, as few as its rank.

    A pair that all objectives label has one factor with DPO, IPO and SimPO, whatever M.

    Args:
        weights: W, ``(M, N)``.
        members: Per prompt, its sequences.

    Returns:
        For each k ``c_k``, ``(N,)``, its largest entry within a prompt 1 or -1, and ``s_k``,
        ``(M, N)``, the same for all sequences of a prompt.
    """
    whole = weights.detach().to("cpu", torch.float64)
    found: list[tuple[Tensor, Tensor]] = []
    for group in members:
        index = list(group)
        part = whole[:, index]
        # Objectives may differ by orders of magnitude: none is lost beside another.
        size = part.abs().amax(1, keepdim=True)
        left, values, right = torch.linalg.svd(
            (part / size.clamp(min=_TINY)).nan_to_num(0, 0, 0), full_matrices=False
        )
        rank = max(int((values > _SMALL * values[0]).sum()), 1)
        for k in range(rank):
            if k == len(found):
                found.append((whole.new_zeros(whole.shape[1]), torch.zeros_like(whole)))
            c, s = found[k]
            largest = right[k, right[k].abs().argmax()]
            c[index] = right[k] / largest
            # A loss that is not finite must show in its gradient.
            s[:, index] = size * (left[:, k : k + 1] * values[k] * largest)
    return [(c.to(weights), s.to(weights)) for c, s in found]


def shortest_rows(batch: Batch, count: int) -> Batch:
    """The batch with so many of its rows alone, those that have fewest tokens."""
    lengths = batch["attention_mask"].sum(1)
    costs: dict[int, int] = defaultdict(int)
    for pairs in batch["pairs"].values():
        sizes = lengths[pairs["chosen"]] + lengths[pairs["rejected"]]
        for row, size in zip(_rows_of(batch, pairs).tolist(), sizes.tolist(), strict=True):
            costs[row] += size
    return some_rows(batch, sorted(sorted(costs), key=lambda row: costs[row])[:count])


def some_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """The batch with some of its rows alone, and the sequences they need, padding trimmed.

    Args:
        rows: Their numbers: those of ``row``, or the pairs' places where the batch has none.
    """
    device = batch["input_ids"].device
    wanted = torch.tensor(list(rows), device=device)
    kept = {}
    for name, pairs in batch["pairs"].items():
        own = torch.isin(_rows_of(batch, pairs), wanted)
        kept[name] = {key: value[own] for key, value in pairs.items()}
    used = torch.cat([p[side] for p in kept.values() for side in ("chosen", "rejected")]).unique()
    place = torch.full((len(batch["lengths"]),), -1, device=device)
    place[used] = torch.arange(len(used), device=device)
    for pairs in kept.values():
        pairs |= {side: place[pairs[side]] for side in ("chosen", "rejected")}
    width = int(batch["attention_mask"][used].sum(1).max())
    some: dict[str, Any] = {
        name: batch[name][used, :width]
        for name in ("input_ids", "attention_mask", "completion_mask")
    }
    some |= {name: batch[name][used] for name in ("lengths", "reference", "row") if name in batch}
    if "packed" in batch:
        some["packed"] = batch["packed"].select(used.tolist())
    return {**some, "pairs": kept}


def _rows_of(batch: Batch, pairs: Mapping[str, Tensor]) -> Tensor:
    """Of each pair of an objective, the number of its row."""
    if "row" in batch:
        rows: Tensor = batch["row"][pairs["chosen"]]
        return rows
    return torch.arange(len(pairs["weight"]), device=pairs["weight"].device)


def parts_of(batch: Batch, tokens: int, at_least: int = 1) -> list[Batch]:
    """The batch in parts of whole rows, each of at most so many tokens; a longer row stands alone.

    Tokens are those that go through the model: of a packed batch its distinct ones, else the
    padded positions. Losses and gradients of the parts, which are sums, add up to the batch's.

    Args:
        at_least: How many parts there must be, as far as there are rows.
    """
    packed: PackedBatch | None = batch.get("packed")
    lengths = batch["attention_mask"].sum(1).tolist()
    members: dict[int, set[int]] = defaultdict(set)  # sequences of each row
    for pairs in batch["pairs"].values():
        rows = _rows_of(batch, pairs).tolist()
        for row, *both in zip(
            rows, pairs["chosen"].tolist(), pairs["rejected"].tolist(), strict=True
        ):
            members[row].update(both)

    def cost(sequences: set[int]) -> int:
        if packed is not None:
            return packed.tokens_of(sequences)
        return len(sequences) * max(int(lengths[i]) for i in sequences)

    # Rows of like length next to each other need least padding.
    order = sorted(sorted(members), key=lambda row: max(lengths[i] for i in members[row]))
    parts: list[list[int]] = []
    held: set[int] = set()
    for row in order:
        if parts and cost(held | members[row]) <= tokens:
            parts[-1].append(row)
            held |= members[row]
        else:
            parts.append([row])
            held = set(members[row])
    while len(parts) < min(at_least, len(members)):
        most = max(range(len(parts)), key=lambda k: len(parts[k]))
        half = len(parts[most]) // 2
        parts[most : most + 1] = [parts[most][:half], parts[most][half:]]
    return [batch] if len(parts) == 1 else [some_rows(batch, rows) for rows in parts]


def all_shared(batch: Batch, objectives: Sequence[str]) -> bool:
    """Whether every objective's pairs use every sequence of the batch."""
    n = batch["input_ids"].shape[0]
    pairs = (batch["pairs"][name] for name in objectives)
    return all(torch.cat([p["chosen"], p["rejected"]]).unique().numel() == n for p in pairs)
