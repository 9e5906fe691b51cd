"""Attention over packed rows, through transformers' interface for attention functions.

A packed batch (`paretune.data.packing`) runs in two stages, each one row without padding: the
prompts, and then the responses, whose attention reads the prompts' keys and values. Within a row
each stretch attends to its own past only. Linear layers and norms do not notice.

The prompts' keys and values enter the second stage as leaves, one copy for each response: what the
backward pass leaves there is known for each response apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from paretune.data.packing import PackedBatch, Segments
from paretune.logprobs.head import base_model

_NAME = "paretune_packed"
_CHANGES = ("softcap", "s_aux", "position_bias", "head_mask")
"""Arguments of attention functions that change what is computed, and that are not known here."""

Pair = tuple[Tensor, Tensor]
"""Keys and values, ``(1, heads, tokens, width)`` each."""


class UnpackableError(RuntimeError):
    """The model's attention cannot run on packed rows; the message completes "since ..."."""


class PromptStage:
    """The row of the prompts; keeps their keys and values."""

    def __init__(self, batch: PackedBatch) -> None:
        self.row: Segments = batch.prompts
        self.longest = batch.longest
        self.masks: dict[tuple[int, int], Tensor] = {}
        self.kept: dict[nn.Module, Pair] = {}
        """Per attention layer, keys and values of the first row."""

    def attend(self, module: nn.Module, query: Tensor, pair: Pair, how: dict[str, Any]) -> Tensor:
        # Activation checkpointing comes here again and must not replace what is in the graph.
        self.kept.setdefault(module, pair)
        lengths = self.row.lengths
        stretches = zip(*(_split(x, lengths) for x in (query, *pair)), strict=True)
        return _causal(list(stretches), how, self.masks)


class ResponseStage:
    """The row of the responses, each after its prompt."""

    def __init__(self, batch: PackedBatch, prompts: PromptStage) -> None:
        self.row: Segments = batch.responses
        self.longest = batch.longest
        self.masks: dict[tuple[int, int], Tensor] = {}
        self._batch, self._prompts = batch, prompts
        self.leaves: dict[nn.Module, Pair] = {}
        """Per attention layer, the prompts' keys and values for each sequence in turn, ``(1, heads,
        E, width)``."""

    def attend(self, module: nn.Module, query: Tensor, pair: Pair, how: dict[str, Any]) -> Tensor:
        lengths = self.row.lengths
        own = [_split(x, lengths) for x in (query, *pair)]
        if self._batch.prompts.tokens:
            before = [_split(x, self._batch.source_lengths) for x in self._prompt(module)]
            for place, prompt in zip((1, 2), before, strict=True):
                own[place] = [torch.cat(both, 2) for both in zip(prompt, own[place], strict=True)]
        return _causal(list(zip(*own, strict=True)), how, self.masks)

    def _prompt(self, module: nn.Module) -> Pair:
        if module not in self.leaves:
            if module not in self._prompts.kept:
                raise UnpackableError(
                    "the model's attention layers differ from one pass to the next"
                )
            key, value = (
                x.detach().index_select(2, self._batch.source).requires_grad_(x.requires_grad)
                for x in self._prompts.kept[module]
            )
            self.leaves[module] = key, value
        return self.leaves[module]


Stage = PromptStage | ResponseStage

# Of the process, not of a thread: the backward pass recomputes checkpointed layers in others.
_current: list[Stage] = []


def current_stage() -> Stage | None:
    """The stage that the model runs in, forward or backward; None in a padded batch."""
    return _current[-1] if _current else None


@contextmanager
def running(model: nn.Module, stage: Stage) -> Iterator[None]:
    """Within, the model's attention is that of a stage; also what checkpointing recomputes."""
    config = base_model(model).config
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    configs = [config, *(part for part in parts if part is not None)]
    before = [part._attn_implementation for part in configs]
    _current.append(stage)
    try:
        for part in configs:
            part._attn_implementation = _NAME
        yield
    finally:
        _current.pop()
        for part, name in zip(configs, before, strict=True):
            part._attn_implementation = name


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: ``(1, heads, T, width)`` to ``(1, T, heads, width)``."""
    stage = _current[-1]
    if attention_mask is not None:
        raise UnpackableError("the model makes attention masks of its own")
    for name in _CHANGES:
        if options.get(name) is not None:
            raise UnpackableError(f"the model's attention has {name}")
    if options.get("is_causal") is False:
        raise UnpackableError("the model's attention is not causal")
    window = options.get("sliding_window")
    if window is not None and window < stage.longest:
        raise UnpackableError(f"the model's attention has a window of {window} tokens")
    how: dict[str, Any] = {"dropout_p": dropout, "scale": scaling}
    result = stage.attend(module, query, (key, value), how)
    return result.transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, lambda *_args, **_named: None)


def _split(values: Tensor, lengths: tuple[int, ...]) -> list[Tensor]:
    return list(values.split(lengths, 2))


Stretch = tuple[Tensor, Tensor, Tensor]
"""Queries ``(1, heads, q, width)``, and keys and values of k ≥ q tokens."""


def _causal(
    stretches: list[Stretch], how: dict[str, Any], masks: dict[tuple[int, int], Tensor]
) -> Tensor:
    """Attention of each stretch's queries to its keys up to their own place, from the end.

    Args:
        how: Dropout and scale.
        masks: Of the shapes met in this stage.
    """
    stretches = [stretch for stretch in stretches if stretch[0].shape[2]]
    query, key, _ = stretches[0]
    grouped = query.shape[1] != key.shape[1]
    if query.is_cuda and query.element_size() == 2 and not how["dropout_p"]:
        return _causal_cuda(stretches, how["scale"], grouped)
    results = []
    for query, key, value in stretches:
        q, k = query.shape[2], key.shape[2]
        if q != k and (q, k) not in masks:
            masks[q, k] = torch.ones(q, k, dtype=torch.bool, device=query.device).tril(k - q)
        mask = None if q == k else masks[q, k]
        results.append(
            scaled_dot_product_attention(
                query, key, value, mask, is_causal=q == k, enable_gqa=grouped, **how
            )
        )
    return torch.cat(results, 2)


def _causal_cuda(stretches: list[Stretch], scale: float | None, grouped: bool) -> Tensor:
    """The same in one call of flash attention, whose causal mask is aligned at the end.

    Not run so far: written from torch's documentation, on a machine without a GPU.
    """
    from torch.nn.attention.varlen import varlen_attn

    parts = list(zip(*stretches, strict=True))
    query, key, value = (torch.cat(part, 2)[0].transpose(0, 1) for part in parts)
    q, k = ([x.shape[2] for x in part] for part in parts[:2])
    cu_q, cu_k = (
        torch.tensor([0, *lengths], device=query.device).cumsum(0, dtype=torch.int32)
        for lengths in (q, k)
    )
    result = varlen_attn(
        query,
        key,
        value,
        cu_q,
        cu_k,
        max(q),
        max(k),
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=grouped,
    )
    assert isinstance(result, Tensor)
    return result.transpose(0, 1)[None]
