"""Response log-probabilities of whole data sets."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paretune.data.packing import pack
from paretune.data.tokenization import TokenSequence, pad_sequences
from paretune.logprobs.packing import Packing
from paretune.models import is_sharded
from paretune.models.products import fast_products


@torch.no_grad()
@fast_products()
def score_sequences(
    model: nn.Module,
    sequences: Sequence[TokenSequence],
    pad_token_id: int,
    batch_size: int = 8,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """Response log-probabilities of many sequences, ``(len(sequences),)`` float32 on the CPU.

    Sequences are batched by prompt where they run packed, else by length. With several processes
    each scores its share and leaves zeros elsewhere: sum over ranks. The model's training mode is
    restored.

    Args:
        batch_size: Most sequences in a batch.
        progress: Told after each batch how many of how many batches are done.
        packing: The model's; by default packed where that is exact.
    """
    packing = Packing(model) if packing is None else packing
    device = next(model.parameters()).device
    result = torch.zeros(len(sequences))
    training = model.training
    model.eval()
    try:
        packing.prove(sequences, pad_token_id)
        every = _batches(sequences, batch_size, packing)
        batches = every[rank::world_size]
        for number, batch in enumerate(batches, start=1):
            inputs = _tensors(sequences, batch, pad_token_id, device)
            result[batch] = packing.logps(inputs).float().cpu()
            if progress is not None:
                progress(number, len(batches))
        if is_sharded(model) and len(every) > len(batches) * world_size:
            packing.logps(_tensors(sequences, every[0], pad_token_id, device))  # others have one
    finally:
        model.train(training)
    return result


def _tensors(
    sequences: Sequence[TokenSequence], batch: Sequence[int], pad_token_id: int, device: Any
) -> dict[str, Any]:
    some = [sequences[i] for i in batch]
    inputs = {k: v.to(device) for k, v in pad_sequences(some, pad_token_id).items()}
    return {**inputs, "packed": pack(some)}


def by_prompt(sequences: Sequence[TokenSequence]) -> list[int]:
    """The order in which data sets are scored: prompt by prompt, short prompts first."""

    def key(i: int) -> tuple[int, tuple[int, ...], int]:
        ids, prompt = sequences[i].input_ids, sequences[i].prompt_length
        return prompt, ids[:prompt], len(ids)

    return sorted(range(len(sequences)), key=key)


def _batches(sequences: Sequence[TokenSequence], size: int, packing: Packing) -> list[list[int]]:
    """Batches of at most `size` sequences; those of a prompt stay together as far as they fit.

    The same in all processes, though a proof may fail in one of them alone.
    """
    lengths = [len(sequence.input_ids) for sequence in sequences]
    packed = by_prompt(sequences) if packing.planned else []
    packed = [i for i in packed if packing.fits(lengths[i])]
    rest = sorted(set(range(len(sequences))) - set(packed), key=lambda i: lengths[i])
    batches = [rest[start : start + size] for start in range(0, len(rest), size)]
    prompts: dict[tuple[int, ...], list[int]] = {}
    for i in packed:
        prompts.setdefault(sequences[i].input_ids[: sequences[i].prompt_length], []).append(i)
    batch: list[int] = []
    for members in prompts.values():
        for start in range(0, len(members), size):
            some = members[start : start + size]
            if batch and len(batch) + len(some) > size:
                batches.append(batch)
                batch = []
            batch = batch + some
    return batches + ([batch] if batch else [])
