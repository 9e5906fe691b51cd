"""Decoding in batches: sampling by inversion, and finished answers leave room for the next."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
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

from paretune.models.products import fast_products

_FINISHED = 1 / 8  # part of a batch that leaves at a time: each time copies the cache
_TOP = 64  # likeliest tokens that are looked at first for the nucleus

_SHARED = 8  # tokens with which all prompts begin, from which on they are read once for all

_keep_finished: WeakSet[Any] = WeakSet()
"""Models whose cache holds more than keys and values by row, so that no rows can be dropped."""
_read_whole: WeakSet[Any] = WeakSet()
"""Models whose cache is not plain keys and values of all tokens."""


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
        plain = _kinds(cache) == {DynamicLayer}
        self._cache = cache if plain else None
        self._tokens = list(tokens[: cache.get_seq_length()]) if plain else []


@fast_products()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
    sampling: SeededSampling | None = None,
    streamer: BaseStreamer | None = None,
    kept: KeptPrefix | None = None,
    ended: Callable[[int, list[int]], None] | None = None,
    adapters: Sequence[str] | None = None,
) -> list[list[int]]:
    """The tokens that `model.generate` gives: the likeliest at each step, or those of `sampling`.

    Nothing of the model's own generation config has a part in it. What all prompts begin with,
    such as a system message, is read once. Answers that have ended leave the batch from time to
    time, and the next prompts, the longest first, take their places; as far as the model's cache
    can be selected from and added to.

    Args:
        prompts: Token ids.
        batch_size: Answers that are in the making at a time.
        sampling: Of all prompts.
        kept: Of a single prompt: what of it need not be read again; holds it afterwards.
        ended: Is given each answer that has ended, with the number of its prompt.
        adapters: Of a PEFT model that has several, the one that answers each prompt. Those that
            come first are answered first.

    Returns:
        The tokens of each prompt's answer; the last of them is the end token, if there is one.
    """
    answers: dict[int, list[int]] = {}
    turn = {name: n for n, name in enumerate(dict.fromkeys(adapters or ()))}
    by = [0] * len(prompts) if adapters is None else [turn[name] for name in adapters]
    waiting = deque(sorted(range(len(prompts)), key=lambda i: (by[i], -len(prompts[i]))))
    decoder = _Decoder(model, max_new_tokens, eos_ids, pad_id, sampling, streamer, adapters)

    def next_rows(count: int) -> _Rows:
        numbers = [waiting.popleft() for _ in range(min(count, len(waiting)))]
        asked = [prompts[i] for i in numbers]
        read = None if beginning is None else (beginning, [by[i] for i in numbers])
        return _Rows.of(numbers, asked, pad_id, model.device, read)

    with own_settings_off(model):
        beginning = decoder.beginning(prompts, [by.index(n) for n in sorted(set(by))])
        rows = next_rows(0)
        while waiting or len(rows):
            if not len(rows):
                rows = next_rows(batch_size)
                if kept is not None:
                    rows.cache = kept.take(prompts[0])
            elif waiting and _kinds(rows.cache) == {DynamicLayer}:
                new = next_rows(batch_size - len(rows))
                decoder.go_on(new, 1)
                rows = _joined(rows, new, pad_id)
            decoder.go_on(rows, max_new_tokens)
            over = decoder.over(rows.tokens, rows.starts)
            for i in over.nonzero().flatten().tolist():
                number = rows.numbers[i]
                if number not in answers:
                    answers[number] = decoder.answer(rows, i)
                    if ended is not None:
                        ended(number, answers[number])
            if kept is not None:
                kept.keep(rows.tokens[0].tolist(), rows.cache)
            if bool(over.all()) or _kinds(rows.cache) <= _SELECTABLE:
                rows = rows.select((~over).nonzero().flatten())
            else:  # go on with all rows, whatever comes behind their ends
                _keep_finished.add(model)
                rows.cache = None
    return [answers[i] for i in range(len(prompts))]


@dataclass
class _Rows:
    """Prompts with what was made of their answers, padded to one length T.

    Attributes:
        numbers: Which prompts.
        tokens, mask: ``(B, T)``; padding stands behind the shared beginning.
        starts: ``(B,)``: where the answers begin.
        shared: Tokens of the beginning that all prompts have.
        cache: Of the first tokens, all but the last if there is an answer; None: not read yet.
    """

    numbers: list[int]
    tokens: Tensor
    mask: Tensor
    starts: Tensor
    shared: int = 0
    cache: Any = None

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of(
        cls,
        numbers: list[int],
        prompts: Sequence[Sequence[int]],
        pad_id: int,
        device: Any,
        beginning: tuple[Any, list[int]] | None = None,
    ) -> _Rows:
        """Prompts not read yet but for their beginning.

        Args:
            beginning: The cache of it, a row for each adapter, and which row is each prompt's.
        """
        shared = 0 if beginning is None else beginning[0].get_seq_length()
        width = max(map(len, prompts), default=0)
        tokens, mask = [], []
        for prompt in prompts:
            first, rest, pad = prompt[:shared], prompt[shared:], width - len(prompt)
            tokens.append([*first, *[pad_id] * pad, *rest])
            mask.append([1] * shared + [0] * pad + [1] * len(rest))
        rows = cls(
            numbers,
            torch.tensor(tokens, device=device),
            torch.tensor(mask, device=device),
            torch.full((len(prompts),), width, device=device),
            shared,
        )
        if beginning is not None and numbers:
            rows.cache = copy.deepcopy(beginning[0])
            rows.cache.batch_select_indices(torch.tensor(beginning[1], device=device))
        return rows

    def select(self, left: Tensor) -> _Rows:
        """These rows alone, without the padding that all of them have."""
        numbers = [self.numbers[i] for i in left.tolist()]
        tokens, mask, starts = self.tokens[left], self.mask[left], self.starts[left]
        if numbers:
            self.cache.batch_select_indices(left)
        if numbers and _kinds(self.cache) == {DynamicLayer}:
            seen = mask.any(0).nonzero().flatten()  # the last is, and not in the cache
            padding = mask.shape[1] - len(seen)
            tokens, mask, starts = tokens[:, seen], mask[:, seen], starts - padding
            for layer in self.cache.layers if padding else ():
                layer.keys, layer.values = (x[:, :, seen[:-1]] for x in (layer.keys, layer.values))
        return _Rows(numbers, tokens, mask, starts, self.shared, self.cache)


def _joined(one: _Rows, other: _Rows, pad_id: int) -> _Rows:
    """The rows of both, with answers begun, whose caches are plain."""
    width = max(one.tokens.shape[1], other.tokens.shape[1])
    pads = [width - rows.tokens.shape[1] for rows in (one, other)]
    at = one.shared

    def join(first: Tensor, second: Tensor, fill: int = 0) -> Tensor:
        """Along the rows, padded along dimension -1 or, of keys and values, -2."""
        padded = []
        for part, more in zip((first, second), pads, strict=True):
            space = part.new_full((*part.shape[:-1], more), fill)
            padded.append(torch.cat([part[..., :at], space, part[..., at:]], -1))
        return torch.cat(padded)

    for layer, new in zip(one.cache.layers, other.cache.layers, strict=True):
        layer.keys = join(layer.keys.mT, new.keys.mT).mT.contiguous()
        layer.values = join(layer.values.mT, new.values.mT).mT.contiguous()
    return _Rows(
        [*one.numbers, *other.numbers],
        join(one.tokens, other.tokens, pad_id),
        join(one.mask, other.mask),
        torch.cat([rows.starts + more for rows, more in zip((one, other), pads, strict=True)]),
        at,
        one.cache,
    )


def _kinds(cache: Any) -> set[type]:
    """Of the layers of a cache that is keys and values of every row and nothing else."""
    return {type(layer) for layer in cache.layers} if type(cache) is DynamicCache else {object}


_SELECTABLE = {DynamicLayer, DynamicSlidingWindowLayer}


@dataclass
class _Decoder:
    """How all rows are decoded."""

    model: Any
    max_new_tokens: int
    eos_ids: Sequence[int]
    pad_id: int
    sampling: SeededSampling | None
    streamer: BaseStreamer | None
    adapters: Sequence[str] | None

    def go_on(self, rows: _Rows, most: int) -> None:
        """Make up to so many tokens more of each answer, until a part is over, if it can leave."""
        stay = len(rows) == 1 or self.streamer is not None or self.model in _keep_finished
        width = rows.tokens.shape[1]
        left = int(rows.starts.max()) + self.max_new_tokens - width
        more: dict[str, Any] = {} if rows.cache is None else {"past_key_values": rows.cache}
        if self.adapters is not None:
            more["adapter_names"] = [self.adapters[i] for i in rows.numbers]
        made = self.model.generate(
            input_ids=rows.tokens,
            attention_mask=rows.mask,
            generation_config=GenerationConfig(
                max_new_tokens=min(most, left),
                eos_token_id=list(self.eos_ids),
                pad_token_id=self.pad_id,
                do_sample=False,
                use_cache=True,
                return_dict_in_generate=True,
            ),
            logits_processor=LogitsProcessorList(
                [] if self.sampling is None else [self.sampling.at(rows.numbers, rows.starts)]
            ),
            stopping_criteria=StoppingCriteriaList([] if stay else [_Finished(self, rows.starts)]),
            streamer=self.streamer,
            **more,
        )
        rows.tokens, rows.cache = made.sequences, made.past_key_values
        rows.mask = nn.functional.pad(rows.mask, (0, rows.tokens.shape[1] - width), value=1)

    def beginning(self, prompts: Sequence[Sequence[int]], firsts: list[int]) -> Any:
        """The cache of what all prompts begin with; None where that is not worth while.

        Args:
            firsts: A prompt of each adapter, which has its own keys and values.
        """
        alone = len(prompts) == len(firsts)
        if alone or self.model in _keep_finished or self.model in _read_whole:
            return None
        first = prompts[0]
        count = min(map(len, prompts)) - 1  # of each prompt a token is left to be read
        for prompt in prompts[1:]:
            if first[:count] != prompt[:count]:
                count = next(n for n in range(count) if first[n] != prompt[n])
        if count < _SHARED:
            return None
        rows = _Rows.of(firsts, [first[:count]] * len(firsts), self.pad_id, self.model.device)
        self.go_on(rows, 1)
        if _kinds(rows.cache) == {DynamicLayer}:
            return rows.cache
        _read_whole.add(self.model)
        return None

    def over(self, tokens: Tensor, starts: Tensor) -> Tensor:
        """Which answers have ended or are as long as they may be."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        ends = torch.isin(tokens, tokens.new_tensor(self.eos_ids)) & (places >= starts[:, None])
        return ends.any(1) | (tokens.shape[1] - starts >= self.max_new_tokens)

    def answer(self, rows: _Rows, i: int) -> list[int]:
        start = int(rows.starts[i])
        tokens: list[int] = rows.tokens[i, start : start + self.max_new_tokens].tolist()
        end = next((n for n, token in enumerate(tokens) if token in self.eos_ids), len(tokens))
        return tokens[: end + 1]


class _Finished(StoppingCriteria):
    """Stops where part of the rows are over."""

    def __init__(self, decoder: _Decoder, starts: Tensor) -> None:
        self._decoder, self._starts = decoder, starts

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        over = self._decoder.over(input_ids, self._starts)
        return (over.sum() >= max(1, len(over) * _FINISHED)).expand(len(over))


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

    At step t of its answer row b takes the first token, in vocabulary order, at which the cumulated
    probability exceeds `uniforms[b, t]`. One number a token is enough, and the order of nearly
    equal probabilities plays no part. Leaves that token alone finite, for a greedy decoder.
    """

    def __init__(
        self, temperature: float, top_p: float, uniforms: Tensor, starts: int | Tensor = 0
    ) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._uniforms = uniforms
        self._starts = starts

    def at(self, rows: Sequence[int], starts: Tensor) -> SeededSampling:
        """The sampling of a batch of these rows, whose answers begin there."""
        uniforms = self._uniforms[list(rows)].to(starts.device)
        return SeededSampling(self._temperature, self._top_p, uniforms, starts)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Tensor:
        count, most = self._uniforms.shape
        # An answer may be as long as it may be, and its row still be there.
        steps = torch.as_tensor(input_ids.shape[1] - self._starts).clamp(max=most - 1)
        uniforms = self._uniforms.gather(1, steps.expand(count)[:, None].to(self._uniforms.device))
        probabilities = (scores.float() / self._temperature).softmax(-1)
        tokens, kept = nucleus(probabilities, self._top_p)
        cumulated = kept.cumsum(-1)
        target = uniforms.to(scores.device) * cumulated[:, -1:]
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
