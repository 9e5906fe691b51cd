"""Answers of a model to prompts, sampled reproducibly in batches, and the file that keeps them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from paretune.data.encoding import Encoder
from paretune.errors import InputError
from paretune.evaluation.decoding import KeptPrefix, SeededSampling, decode, seeded_uniforms
from paretune.progress import Count
from paretune.results.answers import Answer, Prompt


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.9,
    seed: int = 0,
    batch_size: int = 16,
    progress: Count | None = None,
) -> list[str]:
    """The texts of `generate_answers`, in the order of `prompts`."""
    answers = generate_answers(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    return [answer.response for answer in answers]


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.9,
    seed: int = 0,
    batch_size: int = 16,
    progress: Count | None = None,
    streamer: BaseStreamer | None = None,
    kept: KeptPrefix | None = None,
    ended: Callable[[int, Answer], None] | None = None,
    adapters: Sequence[str] | None = None,
) -> list[Answer]:
    """Answer every prompt; the defaults are the CLAMP paper's (Table 8).

    The model may be a `PreTrainedModel` or a PEFT model, also inside its `disable_adapter()`.
    Its own generation settings (temperature, repetition penalty, ...) are not used, except for
    its end-of-sequence tokens: an answer ends at any of them or at the tokenizer's.

    A sample depends on `seed` and on its own prompt only, neither on the other prompts nor on
    their order or the batch size; a prompt that occurs k times gets k independent samples. What
    batching can still change is rounding: padding and other matrix shapes move the logits by
    about 1e-6 in float32 (1e-2 in bfloat16), which now and then flips a draw or an argmax that
    lies that close to a boundary. Float32 answers are in practice the same.

    Args:
        temperature: 0 takes the most likely token at each step.
        top_p: Sample from the smallest set of tokens with at least this probability; 1 is all.
        streamer: Is given the tokens as they come, as by `generate` of transformers, which takes
            one for a single prompt only.
        kept: Of a single prompt: what it has in common with the last one is not read again.
        ended: Is given each answer when it has ended, with its number.
        adapters: Of a PEFT model that has several, the name of the one that answers each prompt:
            as if each had been asked alone, in batches that they share.

    Raises:
        InputError: if a sampling setting is out of range or a prompt is empty.
    """
    _check_settings(max_new_tokens, temperature, top_p, batch_size)
    encoder = Encoder(tokenizer)
    encoded = [_encoded(encoder, prompt) for prompt in prompts]
    seeds = prompt_seeds(encoded, seed, adapters)
    eos_ids = end_token_ids(model, tokenizer, prompts)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    sampling = None
    if temperature > 0 and prompts:
        uniforms = torch.stack([seeded_uniforms(each, max_new_tokens) for each in seeds])
        sampling = SeededSampling(temperature, top_p, uniforms)
    answers: dict[int, Answer] = {}

    def made(i: int, tokens: list[int]) -> None:
        finished = tokens[-1] in eos_ids
        text = answer_text(tokenizer, tokens[:-1] if finished else tokens)
        answers[i] = Answer(prompts[i], text, finished)
        if ended is not None:
            ended(i, answers[i])
        if progress is not None:
            progress(len(answers), len(prompts))

    was_training = model.training
    model.eval()
    try:
        decode(
            model,
            encoded,
            max_new_tokens,
            eos_ids,
            pad_id,
            batch_size,
            sampling,
            streamer,
            kept,
            made,
            adapters,
        )
    finally:
        model.train(was_training)
    return [answers[i] for i in range(len(prompts))]


def answer_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The words of an answer's tokens, as they are."""
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids up to where the answer starts, just as the model saw the prompt in training.

    A plain prompt is text to go on from, without the chat template; a conversation goes through
    the template once (see `Encoder`).
    """
    return _encoded(Encoder(tokenizer), prompt)


def _encoded(encoder: Encoder, prompt: Prompt) -> list[int]:
    shown = repr(prompt)
    where = f"the prompt {shown if len(shown) <= 80 else shown[:80] + '…'}"
    ids = encoder.prompt(prompt, where)
    if not ids:
        raise InputError(f"Prompt {prompt!r} has no tokens; leave empty prompts out.")
    return ids


def prompt_seeds(
    encoded: Sequence[list[int]], seed: int, of: Sequence[str] | None = None
) -> list[int]:
    """One 63-bit seed a prompt, from its tokens, `seed`, and how often it occurred before.

    Args:
        of: Whose each prompt is: it has the seed that it has among the same one's alone.
    """
    seen: Counter[tuple[str, str]] = Counter()
    seeds = []
    for ids, owner in zip(encoded, of or [""] * len(encoded), strict=True):
        key = str(ids)
        digest = hashlib.sha256(f"{seed}|{seen[owner, key]}|{key}".encode()).digest()
        seeds.append(int.from_bytes(digest[:8]) >> 1)
        seen[owner, key] += 1
    return seeds


def end_token_ids(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> list[int]:
    """The tokens that end an answer: the model's own, the tokenizer's, the chat template's."""
    own = model.generation_config.eos_token_id
    ids = [own] if isinstance(own, int) else list(own or [])
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    if any(not isinstance(prompt, str) for prompt in prompts):
        ids.append(Encoder(tokenizer).end_id)
    if not ids:
        raise InputError(
            "Neither the model's generation config nor the tokenizer has an end-of-sequence "
            "token; set `tokenizer.eos_token`."
        )
    return sorted(set(ids))


def _check_settings(max_new_tokens: int, temperature: float, top_p: float, batch_size: int) -> None:
    if max_new_tokens < 1 or batch_size < 1:
        raise InputError(
            f"max_new_tokens and batch_size must be at least 1, not {max_new_tokens} "
            f"and {batch_size}."
        )
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature must be 0 (greedy) or a positive number, not {temperature}.")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p must lie in (0, 1], not {top_p}.")
