"""Decoding: the same answers as plain `generate`, with or without rows that leave the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
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


def prompts(shared: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    beginning = torch.randint(10, SIZE, (shared,), generator=generator).tolist()
    return [
        beginning + torch.randint(10, SIZE, (length,), generator=generator).tolist()
        for length in (9, 8, 1, 5, 5, 4, 3, 2, 7)
    ]


def plain(
    model: Any, prompt: list[int], ends: list[int], sampling: SeededSampling | None
) -> list[int]:
    """The answer to a prompt alone, up to its end."""
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=ends or None, pad_token_id=0)
    processors = LogitsProcessorList([sampling] if sampling is not None else [])
    found = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)).long(),
        generation_config=config,
        logits_processor=processors,
    )
    answer: list[int] = found[0, len(prompt) :].tolist()
    return answer


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 9])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_answers_as_plain_generate(
    kind: str, temperature: float, batch_size: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = make(kind), prompts(shared)
    sampling, alone = None, [None] * len(given)
    if temperature > 0:
        uniforms = torch.stack([seeded_uniforms(seed, NEW) for seed in range(len(given))])
        sampling = SeededSampling(temperature, 0.95, uniforms)
        alone = [
            SeededSampling(temperature, 0.95, uniforms[i : i + 1], len(given[i]))
            for i in range(len(given))
        ]
    endless = [plain(model, row, [], one) for row, one in zip(given, alone, strict=True)]
    ends = sorted({endless[row][: 4 * row + 1][-1] for row in range(4)})  # some end early
    expected = [plain(model, row, ends, one) for row, one in zip(given, alone, strict=True)]
    assert len({len(each) for each in expected}) > 1
    calls: list[tuple[int, ...]] = []
    generate = model.generate

    def counted(**options: Any) -> Any:
        if options["input_ids"].shape != (1, shared):  # what all prompts begin with
            calls.append(tuple(options["input_ids"].shape))
        return generate(**options)

    monkeypatch.setattr(model, "generate", counted)
    told: list[int] = []
    for attempt in range(2):
        calls.clear()
        told.clear()
        found = decode(
            model, given, NEW, ends, 0, batch_size, sampling, ended=lambda i, _: told.append(i)
        )
        assert found == expected
        assert sorted(told) == list(range(len(given)))
        rows = [count for count, _ in calls]
        assert max(rows) == batch_size
        batches = -(-len(given) // batch_size)
        if batch_size == 1:
            assert len(calls) == len(given)
        elif kind == "mamba":  # one try shows that its state cannot be selected from
            assert len(calls) == batches + 1 - attempt
            assert model in decoding._keep_finished
        elif kind == "mistral":  # of a window nothing is padded
            assert len(calls) > batches
        else:
            assert max(width for _, width in calls) < max(map(len, given)) + NEW


@pytest.mark.parametrize("kind", KINDS)
def test_what_all_prompts_begin_with_is_read_once(kind: str) -> None:
    model, given, read = make(kind), prompts(12), [0]

    def count(_module: Any, _args: Any, options: dict[str, Any]) -> None:
        read[0] += options["input_ids"].numel()

    model.register_forward_pre_hook(count, with_kwargs=True)
    alone = [decode(model, [prompt], 1, [3], 0, 1)[0] for prompt in given]
    assert read[0] == sum(map(len, given))
    for _ in range(2):
        read[0] = 0
        assert decode(model, given, 1, [3], 0, 9) == alone
    longest = max(map(len, given))
    once = 12 + 9 * (longest - 12) if kind in ("llama", "gpt2") else 9 * longest
    assert read[0] == once


def test_rows_that_come_later_do_not_wait_for_the_first() -> None:
    model, steps = make("llama"), [0]

    def count(*_: Any) -> None:
        steps[0] += 1

    given = prompts() * 2
    endless = [plain(model, prompt, [], None) for prompt in given]
    ends = sorted({row[3] for row in endless[:2]})
    lengths = [len(plain(model, prompt, ends, None)) for prompt in given]
    assert min(lengths) < max(lengths) == NEW
    model.register_forward_pre_hook(count)
    assert list(map(len, decode(model, given, NEW, ends, 0, 4))) == lengths
    longest_first = sorted(range(len(given)), key=lambda i: -len(given[i]))
    waiting = sum(max(lengths[i] for i in longest_first[k : k + 4]) for k in range(0, 18, 4))
    assert steps[0] < 0.8 * waiting


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
    ids = torch.randint(10, SIZE, (12,), generator=draw).tolist()
    before: list[int] = []
    for turn in range(4):
        settings: dict[str, Any] = {"max_new_tokens": 5, "eos_ids": ends, "pad_id": 0}
        read.clear()
        (found,) = decode(model, [ids], **settings, batch_size=1, kept=kept)
        again = len(read)
        assert decode(model, [ids], **settings, batch_size=1) == [found]
        known = 0
        while known < min(len(before), len(ids)) - 1 and before[known] == ids[known]:
            known += 1
        assert read[again] == len(ids)
        # Of a window or a state nothing can be cut off.
        assert read[0] == len(ids) - (known if kind in ("llama", "gpt2") else 0)
        before, question = ids + found, torch.randint(10, SIZE, (3,), generator=draw).tolist()
        said = before
        if turn == 1:  # an answer that reads otherwise than it was written
            said = [*before[:-4], question[0], *before[-3:]]
        ids = (ids[:7] if turn == 2 else said) + question


def test_a_row_that_was_cut_short_leaves_no_false_prefix() -> None:
    model, kept = make("llama"), KeptPrefix()
    ids = list(range(10, 22))
    settings: dict[str, Any] = {"max_new_tokens": 4, "eos_ids": [3], "pad_id": 0, "batch_size": 1}
    decode(model, [ids], **settings, kept=kept)

    class Stop(LogitsProcessorList):
        def at(self, *_: Any) -> Any:
            return self

        def __call__(self, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(model, [ids[:8] + ids[:6]], sampling=Stop(), **settings, kept=kept)  # type: ignore[arg-type]
    assert decode(model, [ids], **settings, kept=kept) == decode(model, [ids], **settings)


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize("batch_size", [1, 4, 36])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_several_adapters_in_one_batch(
    kind: str, temperature: float, batch_size: int, shared: int
) -> None:
    given, names = prompts(shared), ["one", "two", "__base__", "three"]
    torch.manual_seed(0)
    model: Any = None
    for name, rank in {"one": 2, "two": 4, "three": 3}.items():
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear")
        if model is None:
            model = get_peft_model(make(kind), config, name).eval()
        else:
            model.add_adapter(name, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    drawn = torch.stack([seeded_uniforms(seed, NEW) for seed in range(len(given))])
    alone = []
    for name in names:
        sampling = SeededSampling(temperature, 0.95, drawn) if temperature > 0 else None
        if name == "__base__":
            with model.disable_adapter():
                alone += decode(model, given, NEW, [3, 5], 0, 4, sampling)
        else:
            model.set_adapter(name)
            alone += decode(model, given, NEW, [3, 5], 0, 4, sampling)
    assert len({str(answer) for answer in alone}) > 3 * len(given)  # the adapters matter
    told: list[int] = []
    sampling = SeededSampling(temperature, 0.95, drawn.repeat(4, 1)) if temperature > 0 else None
    found = decode(
        model,
        given * 4,
        NEW,
        [3, 5],
        0,
        batch_size,
        sampling,
        ended=lambda i, _: told.append(i // len(given)),
        adapters=[name for name in names for _ in given],
    )
    assert found == alone
    if batch_size == 1:
        assert told == sorted(told)  # whole points, one after the other
