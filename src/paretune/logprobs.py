"""Log-probabilities of responses, with logits computed at response tokens only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paretune.data.tokenization import TokenSequence, pad_sequences
from paretune.errors import InputError


def sequence_logps(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """``log π(y|x)`` summed over response tokens, ``(N,)`` float32, differentiable.

    The vocabulary projection runs on the K positions that predict a response token, through the
    model's own ``forward`` (so that logit scaling and soft-capping apply): logits are
    ``(1, K, V)``, never ``(N, L, V)``.
    """
    input_ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:]
    positions = torch.zeros_like(batch["completion_mask"])
    positions[:, :-1] = mask
    with _project_only(model, positions):
        output = model(input_ids=input_ids, attention_mask=batch["attention_mask"], use_cache=False)
    logits = output.logits.squeeze(0)
    targets = input_ids[:, 1:][mask]
    if logits.shape[0] != targets.shape[0]:
        raise InputError(
            f"{type(model).__name__} does not compute its logits from its output embeddings alone: "
            "response log-probabilities cannot be read off it."
        )
    token_logps = -cross_entropy(logits.float(), targets, reduction="none")
    return torch.zeros_like(mask, dtype=torch.float32).masked_scatter(mask, token_logps).sum(1)


@contextmanager
def _project_only(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Let the output embeddings see the hidden states at ``positions`` ``(N, L)`` only."""

    def select(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        return hidden[positions].unsqueeze(0), *rest

    handle = output_embeddings(model).register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def output_embeddings(model: nn.Module) -> nn.Module:
    """The vocabulary projection of a causal language model, PEFT-wrapped or not."""
    base: Any = model
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    head = base.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise InputError(f"{type(base).__name__} has no LM head: use a causal language model.")
    return head


@torch.no_grad()
def score_sequences(
    model: nn.Module,
    sequences: Sequence[TokenSequence],
    pad_token_id: int,
    batch_size: int = 8,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Response log-probabilities of many sequences, ``(len(sequences),)`` float32 on the CPU.

    Sequences are batched by length. With several processes each scores its share and leaves zeros
    elsewhere: sum over ranks. The model's training mode is restored.

    Args:
        progress: Told after each batch how many of how many batches are done.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].input_ids))
    starts = range(0, len(order), batch_size)[rank::world_size]
    batches = [order[start : start + batch_size] for start in starts]
    device = next(model.parameters()).device
    result = torch.zeros(len(sequences))
    training = model.training
    model.eval()
    try:
        for number, batch in enumerate(batches, start=1):
            tensors = pad_sequences([sequences[i] for i in batch], pad_token_id)
            inputs = {name: value.to(device) for name, value in tensors.items()}
            result[batch] = sequence_logps(model, inputs).cpu()
            if progress is not None:
                progress(number, len(batches))
    finally:
        model.train(training)
    return result
