"""Decoding: the same answers as plain `generate`, with or without rows that leave the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    TopPLogitsWarper,
)

from paretune.evaluation import decoding
from paretune.evaluation.decoding import (
    KeptPrefix,
    SeededSampling,
    decode,
    nucleus,
    seeded_uniforms,
)

SIZE, NEW = 60, 30
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": SIZE}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4}
KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, **HEADS, sliding_window=6)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            n_embd=32, n_layer=2, n_head=4, vocab_size=SIZE, n_positions=64, initializer_range=0.4
        )
    ),
    "mamba": lambda: MambaForCausalLM(MambaConfig(**SMALL, initializer_range=0.4)),
}


def make(kind: str) -> Any:
    torch.manual_seed(0)
    return KINDS[kind]().eval()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = [9, 8, 7, 5, 5, 4, 3, 2, 1]
    ids = torch.randint(10, SIZE, (len(lengths), max(lengths)), generator=generator)
    mask = torch.stack([(torch.arange(max(lengths)) >= max(lengths) - n).long() for n in lengths])
    return ids * mask, mask


def plain(
    model: Any, ids: Tensor, mask: Tensor, ends: list[int], sampling: SeededSampling | None
) -> Tensor:
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=ends or None, pad_token_id=0)
    processors = LogitsProcessorList([sampling] if sampling is not None else [])
    found: Tensor = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors
    )
    return found


def answers(output: Tensor, width: int, ends: list[int]) -> list[list[int]]:
    found = []
    for tokens in output[:, width:].tolist():
        end = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
        found.append(tokens[: end + 1])
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_answers_as_plain_generate(
    kind: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (ids, mask) = make(kind), batch()
    width = ids.shape[1]
    sampling = None
    if temperature > 0:
        uniforms = torch.stack([seeded_uniforms(seed, NEW) for seed in range(len(ids))])
        sampling = SeededSampling(temperature, 0.95, uniforms, width)
    endless = plain(model, ids, mask, [], sampling)
    ends = sorted({int(endless[row, width + 4 * row]) for row in range(4)})  # some end early
    expected = answers(plain(model, ids, mask, ends, sampling), width, ends)
    assert len({len(each) for each in expected}) > 1
    calls: list[int] = []
    generate = model.generate

    def counted(**options: Any) -> Any:
        calls.append(len(options["input_ids"]))
        return generate(**options)

    monkeypatch.setattr(model, "generate", counted)
    for attempt in range(2):
        calls.clear()
        output = decode(model, ids, mask, NEW, ends, 0, sampling)
        assert output[:, :width].equal(ids)
        assert answers(output, width, ends) == expected
        if kind == "mamba":  # one try shows that its state cannot be selected from
            assert calls == [len(ids)] * (2 - attempt)
            assert model in decoding._keep_finished
        else:
            assert calls[0] == len(ids)
            assert len(calls) > 1
            assert calls == sorted(set(calls), reverse=True)


@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
def test_the_nucleus_is_that_of_the_sorted_vocabulary(scale: float, top_p: float) -> None:
    torch.manual_seed(0)
    logits = scale * torch.randn(40, 1000) + 1e-3 * torch.randn(40, 1000)
    warped = TopPLogitsWarper(top_p)(torch.zeros(40, 1).long(), logits) if top_p < 1 else logits
    expected = warped.isfinite() & (logits.softmax(-1) > 0)
    tokens, kept = nucleus(logits.softmax(-1), top_p)
    assert (tokens.diff(dim=-1) > 0).all()
    found = torch.zeros_like(logits).scatter(-1, tokens, kept)
    # Of flat distributions rounding decides about the last token, or about two as likely.
    differ = ((found > 0) != expected).sum(-1)
    assert differ.max() <= (2 if scale < 1 else 0)
    agreed = (found > 0) & expected
    assert found[agreed].equal(logits.softmax(-1)[agreed])


def test_few_tokens_are_looked_at_where_few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    topk = torch.Tensor.topk

    def counted(self: Tensor, k: int) -> Any:
        asked.append(k)
        return topk(self, k)

    monkeypatch.setattr(torch.Tensor, "topk", counted)
    torch.manual_seed(0)
    nucleus((6 * torch.randn(4, 5000)).softmax(-1), 0.9)
    assert asked == [64]
    nucleus(torch.full((2, 600), 1 / 600), 0.9)
    assert asked[1:] == [64, 512, 600]


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_reads_only_what_is_new(kind: str) -> None:
    model, kept, ends = make(kind), KeptPrefix(), [3]
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda _module, _args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    draw = torch.Generator().manual_seed(3)
    ids, before = torch.randint(10, SIZE, (1, 12), generator=draw), torch.zeros(1, 0).long()
    for turn in range(4):
        settings: dict[str, Any] = {"max_new_tokens": 5, "eos_ids": ends, "pad_id": 0}
        read.clear()
        found = decode(model, ids, torch.ones_like(ids), **settings, kept=kept)
        again = len(read)
        expected = decode(model, ids, torch.ones_like(ids), **settings)
        assert found.tolist() == expected.tolist()
        known = 0
        while known < min(before.shape[1], ids.shape[1]) - 1 and before[0, known] == ids[0, known]:
            known += 1
        assert read[again] == ids.shape[1]
        # Of a window or a state nothing can be cut off.
        assert read[0] == ids.shape[1] - (known if kind in ("llama", "gpt2") else 0)
        before, question = found, torch.randint(10, SIZE, (1, 3), generator=draw)
        if turn == 1:  # an answer that reads otherwise than it was written
            found = torch.cat([found[:, :-4], question[:, :1], found[:, -3:]], 1)
        ids = torch.cat([ids[:, :7] if turn == 2 else found, question], 1)


def test_a_row_that_was_cut_short_leaves_no_false_prefix() -> None:
    model, kept = make("llama"), KeptPrefix()
    ids = torch.arange(10, 22)[None]
    settings = {"max_new_tokens": 4, "eos_ids": [3], "pad_id": 0, "kept": kept}
    decode(model, ids, torch.ones_like(ids), **settings)

    class Stop(LogitsProcessorList):
        def __call__(self, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

    other = torch.cat([ids[:, :8], ids[:, :6]], 1)
    with pytest.raises(KeyboardInterrupt):
        decode(model, other, torch.ones_like(other), sampling=Stop(), **settings)  # type: ignore[arg-type]
    found = decode(model, ids, torch.ones_like(ids), **settings)
    settings.pop("kept")
    assert found.tolist() == decode(model, ids, torch.ones_like(ids), **settings).tolist()
