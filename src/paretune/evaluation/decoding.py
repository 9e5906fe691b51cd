"""Decoding a batch of prompts: sampling by inversion, and finished answers leave the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.streamers import BaseStreamer

_FINISHED = 1 / 8  # part of a batch that is dropped at a time: each time copies the cache
_TOP = 64  # likeliest tokens that are looked at first for the nucleus

_keep_finished: WeakSet[Any] = WeakSet()
"""Models whose cache holds more than keys and values by row, so that no rows can be dropped."""


class KeptPrefix:
    """Keys and values of the tokens that one row read or made last, for a row that begins alike.

    Only for the model, with the adapter and the gate, that they are from.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._cache: Any = None

    def take(self, tokens: Sequence[int]) -> Any:
        """The cache of what the row has in common with the last one; None if that is nothing.

        One token at least is left to be read.
        """
        same = 0
        for one, other in zip(self._tokens, tokens[:-1], strict=False):
            if one != other:
                break
            same += 1
        # Should the row be cut short, the cache is right up to here, whatever comes after it.
        self._tokens = list(tokens[:same])
        if same == 0:
            self._cache = None
        elif over := self._cache.get_seq_length() - same:
            self._cache.crop(-over)
        return self._cache

    def keep(self, tokens: Sequence[int], cache: Any) -> None:
        """Keep a cache, if it can be cut back, and the tokens, of which it may lack the last."""
        plain = type(cache) is DynamicCache and all(type(x) is DynamicLayer for x in cache.layers)
        self._cache = cache if plain else None
        self._tokens = list(tokens[: cache.get_seq_length()]) if plain else []


def decode(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    sampling: SeededSampling | None = None,
    streamer: BaseStreamer | None = None,
    kept: KeptPrefix | None = None,
) -> Tensor:
    """The tokens that `model.generate` gives: the likeliest at each step, or those of `sampling`.

    Nothing of the model's own generation config has a part in it. Rows that have ended leave the
    batch from time to time, if the model's cache can be selected from.

    Args:
        ids, mask: ``(B, T)``, padded on the left.
        kept: Of a single row: what of it need not be read again; holds this row afterwards.

    Returns:
        ``(B, T + up to max_new_tokens)`` token ids; what stands behind a row's first end token
        says nothing.
    """
    (batch, width), device = ids.shape, ids.device
    output = ids.new_full((batch, width + max_new_tokens), pad_id)
    ends, rows = torch.tensor(eos_ids, device=device), torch.arange(batch, device=device)
    cache: Any = None if kept is None else kept.take(ids[0].tolist())
    drop = batch > 1 and streamer is None and model not in _keep_finished
    with own_settings_off(model):
        while True:
            made = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=GenerationConfig(
                    max_new_tokens=width + max_new_tokens - ids.shape[1],
                    eos_token_id=list(eos_ids),
                    pad_token_id=pad_id,
                    do_sample=False,
                    use_cache=True,
                    return_dict_in_generate=True,
                ),
                logits_processor=LogitsProcessorList([sampling] if sampling is not None else []),
                stopping_criteria=StoppingCriteriaList([_Finished(ends, width)] if drop else []),
                streamer=streamer,
                **({} if cache is None else {"past_key_values": cache}),
            )
            sequences, cache = made.sequences, made.past_key_values
            length = sequences.shape[1]
            output[rows, :length] = sequences
            open_rows = ~torch.isin(sequences[:, width:], ends).any(1)
            if length == output.shape[1] or not bool(open_rows.any()):
                if kept is not None:
                    kept.keep(sequences[0].tolist(), cache)
                return output[:, :length]
            if _selectable(cache):
                left = open_rows.nonzero().flatten()
                cache.batch_select_indices(left)
                rows, sequences, mask = rows[left], sequences[left], mask[left]
                sampling = None if sampling is None else sampling.select(left)
            else:  # go on with all rows, whatever comes behind their ends
                _keep_finished.add(model)
                drop, cache = False, None
            mask = torch.cat([mask, mask.new_ones(len(mask), length - mask.shape[1])], 1)
            ids = sequences


class _Finished(StoppingCriteria):
    """Stops where part of the rows have ended."""

    def __init__(self, ends: Tensor, start: int) -> None:
        self._ends, self._start = ends, start

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended = torch.isin(input_ids[:, self._start :], self._ends).any(1)
        return (ended.sum() >= max(1, len(ended) * _FINISHED)).expand(len(ended))


def _selectable(cache: Any) -> bool:
    """Whether a cache is keys and values of every row and nothing else."""
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in kinds for layer in cache.layers)


@contextmanager
def own_settings_off(model: Any) -> Iterator[None]:
    """Empty the model's generation config for the time: `generate` fills what is left open in a
    given one from it."""
    # A PEFT model keeps one beside its base's, and gives the base its own when it generates.
    parts = [part for part in model.modules() if "generation_config" in vars(part)]
    kept = [(part, part.generation_config) for part in parts]
    for part in parts:
        part.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for part, config in kept:
            part.generation_config = config


class SeededSampling(LogitsProcessor):
    """Temperature and nucleus sampling by inversion, from numbers drawn beforehand.

    At step t row b takes the first token, in vocabulary order, at which the cumulated
    probability exceeds `uniforms[b, t]`. One number a token is enough, and the order of nearly
    equal probabilities plays no part. Leaves that token alone finite, for a greedy decoder.
    """

    def __init__(self, temperature: float, top_p: float, uniforms: Tensor, start: int) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._uniforms = uniforms
        self._start = start

    def select(self, rows: Tensor) -> SeededSampling:
        """The sampling of these rows of the batch."""
        uniforms = self._uniforms[rows.to(self._uniforms.device)]
        return SeededSampling(self._temperature, self._top_p, uniforms, self._start)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Tensor:
        step = input_ids.shape[1] - self._start
        probabilities = (scores.float() / self._temperature).softmax(-1)
        tokens, kept = nucleus(probabilities, self._top_p)
        cumulated = kept.cumsum(-1)
        target = self._uniforms[:, step, None].to(scores.device) * cumulated[:, -1:]
        position = (cumulated <= target).sum(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens.gather(-1, position), 0.0)


def nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest set of the likeliest tokens that has at least probability `top_p`.

    Most often a few tokens are enough, so that the vocabulary need not be sorted.

    Args:
        probabilities: ``(B, V)``.

    Returns:
        ``(B, K)`` tokens in the order of the vocabulary, K at least the size of the largest set,
        and ``(B, K)`` their probabilities, 0 for tokens outside of the row's set.
    """
    size = probabilities.shape[-1]
    if top_p >= 1:
        return torch.arange(size, device=probabilities.device).expand_as(
            probabilities
        ), probabilities
    count = min(_TOP, size)
    while True:
        likeliest, tokens = probabilities.topk(count)
        cumulated = likeliest.cumsum(-1)
        if count == size or bool((cumulated[:, -1] >= top_p).all()):
            break
        count = min(8 * count, size)
    inside = cumulated - likeliest < top_p  # what is likelier is not enough
    inside[:, 0] = True
    tokens, order = tokens.sort(-1)
    return tokens, (likeliest * inside).gather(-1, order)


def seeded_uniforms(seed: int, count: int) -> Tensor:
    """The numbers in [0, 1) from which the tokens of one answer are sampled."""
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    # One float32 step below 1, so that `target` stays below the total after rounding.
    return draws.clamp_(max=1 - 2**-23)
