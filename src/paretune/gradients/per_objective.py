"""The plain way to M gradients: one backward pass each. Exact for every model."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from paretune.gradients.bank import GradientBank
from paretune.gradients.objectives import Batch, all_shared, loss_sums, restrict
from paretune.logprobs import PackedPass, sequence_logps
from paretune.losses import PreferenceLoss


def accumulate(
    model: nn.Module,
    batch: Batch,
    losses: Mapping[str, PreferenceLoss],
    bank: GradientBank,
    scale: float = 1.0,
    shared_forward: bool | None = None,
) -> int:
    """Add the batch's M gradients and losses to the bank.

    Args:
        scale: Loss scale of mixed precision: applied before each backward, taken off after it.
        shared_forward: Run one forward for all objectives, then M backwards through it. None does
            so when every objective uses every sequence; otherwise each objective gets a forward
            and a backward over its own sequences alone, as in Algorithm 1 of the CLAMP paper.

    Returns:
        How many passes it took, forward and backward each counting as one.
    """
    if shared_forward is None:
        shared_forward = all_shared(batch, list(losses))
    groups: Sequence[tuple[Batch, Mapping[str, PreferenceLoss]]]
    if shared_forward:
        groups = [(batch, losses)]
    else:
        groups = [(restrict(batch, name), {name: loss}) for name, loss in losses.items()]
    first, all_sums, all_totals = 0, [], []
    for part, part_losses in groups:
        run = PackedPass(model, part["packed"]) if "packed" in part else None
        logps = sequence_logps(model, part) if run is None else run.logps
        sums, totals = loss_sums(logps, part, part_losses)
        for index, value in enumerate(sums):
            more = index < len(sums) - 1
            gradients: Sequence[Tensor | None]
            if run is None:
                gradients = torch.autograd.grad(
                    value * scale, bank.parameters, retain_graph=more, allow_unused=True
                )
            else:
                gradients = run.gradients(value * scale, bank.parameters, more)
            bank.add_gradient(
                first + index, [g if g is None or scale == 1 else g / scale for g in gradients]
            )
        first += len(sums)
        all_sums.append(sums.detach())
        all_totals.append(totals)
    bank.add_losses(torch.cat(all_sums), torch.cat(all_totals))
    return len(groups) + first
