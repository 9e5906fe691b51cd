"""Log-probabilities of tokens from hidden states: the vocabulary projection in chunks.

Where the projection is frozen, the gradient of each token's log-probability with respect to its
hidden state is made in the forward pass, chunk by chunk; the backward pass multiplies it by the
cotangent. Logits of K tokens over V entries never stand in memory at once, and are made once.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.functional import cross_entropy

from paretune.errors import InputError
from paretune.models import whole
from paretune.models.products import product

logger = logging.getLogger(__name__)

_CHUNK = 256  # tokens

_readable: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Heads whose logits are known to be what `_after_head` says, or something else."""


def output_embeddings(model: nn.Module) -> nn.Module:
    """The vocabulary projection of a causal language model, PEFT-wrapped or not."""
    base = base_model(model)
    head = base.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise InputError(f"{type(base).__name__} has no LM head: use a causal language model.")
    return head


def base_model(model: nn.Module) -> Any:
    """The model that an adapter is wrapped around, or the model itself."""
    base: Any = model
    return base.get_base_model() if hasattr(base, "get_base_model") else base


def token_logps(
    model: nn.Module,
    run: Callable[[], Any],
    select: Callable[[Tensor], Tensor],
    targets: Tensor,
    chunked: bool = True,
) -> Tensor:
    """Log-probabilities of K tokens, ``(K,)`` float32 (float64 of a float64 model).

    Args:
        run: Runs the model's forward.
        select: Picks from the hidden states before the head the ``(K, d)`` that predict a token.
        targets: ``(K,)``, the tokens.
        chunked: Whether the head may be taken in chunks, which can be differentiated once only.

    Raises:
        InputError: the model's logits are not made from its output embeddings alone.
    """
    head: Any = output_embeddings(model)
    if not (chunked and _is_frozen(head) and _readable.get(head, True)):
        logits, _ = _run(model, run, lambda hidden: select(hidden), len(targets))
        return -cross_entropy(_wide(logits), targets, reduction="none")
    # The model's own forward sees one token, which shows what it does to the logits.
    logits, hidden = _run(model, run, lambda hidden: select(hidden)[:1], min(len(targets), 1))
    hidden = select(hidden)
    scale, cap = _after_head(model)
    if head not in _readable and len(targets):
        bias = None if head.bias is None else whole(head.bias)
        own = _logits(hidden[:1], whole(head.weight), bias, scale, cap)
        _readable[head] = _agree(logits, own)
        if not _readable[head]:
            logger.info("The logits of %s are computed at once.", type(base_model(model)).__name__)
            return token_logps(model, run, select, targets)
    bias = None if head.bias is None else whole(head.bias)
    return chunked_logps(hidden, whole(head.weight), bias, targets, scale, cap)


def chunked_logps(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float = 1.0,
    cap: float | None = None,
) -> Tensor:
    """Log-probabilities of K tokens from hidden states ``(K, d)`` and a frozen head ``(V, d)``.

    Args:
        scale: Of the logits.
        cap: They are soft-capped at, after that: ``cap tanh(logits / cap)``.
    """
    apply: Callable[..., Tensor] = _ChunkedLogps.apply
    return apply(hidden, weight, bias, targets, scale, cap)


def without_logits(model: nn.Module, run: Callable[[], Any]) -> Tensor:
    """Run the model's forward for its inner layers alone; returns the logits of no token."""
    return _run(model, run, lambda hidden: hidden[0, :0], 0)[0]


def _run(
    model: nn.Module, run: Callable[[], Any], select: Callable[[Tensor], Tensor], expected: int
) -> tuple[Tensor, Tensor]:
    """Logits ``(expected, V)`` of the hidden states selected, and all hidden states."""
    seen: list[Tensor] = []

    def reduce(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        seen.append(hidden)
        return select(hidden).unsqueeze(0), *rest

    handle = output_embeddings(model).register_forward_pre_hook(reduce)
    try:
        logits: Tensor = run().logits
    finally:
        handle.remove()
    if len(seen) != 1 or logits.shape[:-1] != (1, expected):
        raise InputError(
            f"{type(model).__name__} does not compute its logits from its output embeddings alone: "
            "response log-probabilities cannot be read off it."
        )
    return logits[0], seen[0]


def _is_frozen(head: nn.Module) -> bool:
    """Whether a head is a plain projection without a gradient, that no other library replaced."""
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters())
    return type(head) is nn.Linear and not trained and "forward" not in vars(head)


def _after_head(model: nn.Module) -> tuple[float, float | None]:
    """What a model does to its logits by its configuration: times a factor, soft-capped at."""
    config = base_model(model).config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config

    def number(name: str) -> float | None:
        value = getattr(config, name, None)
        return float(value) if isinstance(value, int | float) and value else None

    scale = (number("logit_scale") or 1.0) * (number("lm_head_multiplier") or 1.0)
    cap = number("final_logit_softcapping") or number("logits_soft_cap")
    return scale / (number("logits_scaling") or 1.0), cap


def _agree(given: Tensor, own: Tensor) -> bool:
    """Whether a token's logits ``(1, V)`` are the model's own, but for rounding."""
    loose = 1e-2 if given.element_size() < 4 else 1e-4
    size = float(given.detach().abs().max())
    return bool(((_wide(given) - own).abs().max() <= loose * size).item())


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float | None
) -> Tensor:
    logits = _wide(functional.linear(hidden, weight, bias))
    logits = logits if scale == 1 else logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


class _ChunkedLogps(torch.autograd.Function):
    """Log-probabilities whose gradient is made in the forward pass; the head is frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        cap: float | None,
    ) -> Tensor:
        with _cast_once(hidden.device) as dtype:
            kind = hidden.dtype if dtype is None else dtype
            weight, states = weight.to(kind), hidden.to(kind)
            bias = None if bias is None else bias.to(kind)
            result = _wide(hidden.new_empty(len(targets)))
            gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            for start in range(0, len(targets), _CHUNK):
                part = slice(start, start + _CHUNK)
                into = None if gradient is None else gradient[part]
                result[part] = _one_chunk(
                    states[part], weight, bias, targets[part, None], scale, cap, into
                )
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *signals: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * signals[0][:, None]).to(gradient.dtype), None, None, None, None, None


def _one_chunk(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    goal: Tensor,
    scale: float,
    cap: float | None,
    gradient: Tensor | None,
) -> Tensor:
    """Log-probabilities of a chunk, whose logits are gone on return; writes their gradient."""
    logits = _logits(states, weight, bias, scale, cap)
    total = logits.logsumexp(-1, keepdim=True)
    result = (logits.gather(1, goal) - total)[:, 0]
    if gradient is not None:
        gradient.copy_(_product(_slope(logits, total, goal, scale, cap), weight))
    return result


def _slope(logits: Tensor, total: Tensor, goal: Tensor, scale: float, cap: float | None) -> Tensor:
    """The derivative of log-probabilities by what the head gives, in the memory of the logits."""
    inner = scale if cap is None else scale * (1 - (logits / cap).square())
    slope = logits.sub_(total).exp_().neg_()
    slope.scatter_add_(1, goal, torch.ones_like(total))
    return slope if cap is None and scale == 1 else slope.mul_(inner)


def _product(slope: Tensor, weight: Tensor) -> Tensor:
    # Softmax over a large vocabulary is below what float16 resolves.
    grow = 256.0 if weight.dtype == torch.float16 else 1.0
    if grow != 1:
        slope = slope * grow
    made = product(slope.to(weight.dtype), weight)
    return made if grow == 1 else made / grow


@contextmanager
def _cast_once(device: torch.device) -> Iterator[torch.dtype | None]:
    """Autocast turned off, which would cast the head's weight anew for each chunk; its dtype."""
    kind = device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    with torch.autocast(kind, enabled=False):
        yield dtype
