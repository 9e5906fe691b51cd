"""Sampling: reproducible per prompt, right in distribution, and leaving the model as it was."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from paretune.data.tokenization import tokenize_pairs
from paretune.errors import InputError
from paretune.evaluation.decoding import SeededSampling
from paretune.evaluation.generation import (
    encode_prompt,
    end_token_ids,
    generate,
    generate_answers,
)
from paretune.results.answers import Answer, read_answers, write_answers

SPECIALS = ["<unk>", "<pad>", "<bos>", "<eos>", "<user>", "<assistant>"]
WORDS = [f"w{i}" for i in range(40)]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}> "
    "{{ message['content'] }} {{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w12 w13", "w14 w15 w16 w17", "w1", "w18 w2"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(SPECIALS + WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=TEMPLATE,
    )


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIALS + WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        eos_token_id=3,
        bos_token_id=2,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def test_a_sample_depends_on_its_prompt_and_seed_alone(model, tokenizer) -> None:
    options = {"max_new_tokens": 24, "temperature": 1.0, "top_p": 0.95}
    expected = dict(zip(PROMPTS, generate(model, tokenizer, PROMPTS, **options), strict=True))
    assert len(set(expected.values())) == len(PROMPTS)
    for prompts, batch_size in [(PROMPTS, 1), (PROMPTS, 3), (PROMPTS[::-1], 4), (PROMPTS[2:5], 2)]:
        answers = generate(model, tokenizer, prompts, batch_size=batch_size, **options)
        assert answers == [expected[prompt] for prompt in prompts]
    other_seed = generate(model, tokenizer, PROMPTS, seed=1, **options)
    assert all(answer != expected[p] for p, answer in zip(PROMPTS, other_seed, strict=True))


def test_a_repeated_prompt_gets_independent_samples(model, tokenizer) -> None:
    answers = generate(model, tokenizer, ["w1 w2"] * 3, temperature=1.0, max_new_tokens=12)
    assert len(set(answers)) == 3
    assert answers[:1] == generate(model, tokenizer, ["w1 w2"], temperature=1.0, max_new_tokens=12)


def test_temperature_zero_is_the_greedy_answer_of_each_prompt_alone(model, tokenizer) -> None:
    answers = generate(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=12)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = encode_prompt(tokenizer, prompt)
        for _ in range(12):  # no cache, no padding
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        new = ids[len(encode_prompt(tokenizer, prompt)) :]
        assert answer == tokenizer.decode(new, skip_special_tokens=True)


def test_sampled_tokens_follow_the_nucleus_distribution() -> None:
    logits = torch.tensor([2.0, -1.0, 1.0, 0.5, -3.0])
    probabilities = (logits / 0.7).softmax(-1)
    kept = torch.tensor([True, False, True, True, False])  # top-p 0.95 of .69, .17, .08, ...
    assert probabilities[[0, 2]].sum() < 0.95 < probabilities[kept].sum()
    expected = torch.where(kept, probabilities, 0.0) / probabilities[kept].sum()
    rows = 40_000
    uniforms = torch.rand(rows, 1, generator=torch.Generator().manual_seed(0))
    sampling = SeededSampling(0.7, 0.95, uniforms, starts=2)
    chosen = sampling(torch.zeros(rows, 2, dtype=torch.long), logits.repeat(rows, 1)).argmax(-1)
    frequencies = chosen.bincount(minlength=5) / rows
    standard_error = (expected * (1 - expected) / rows).sqrt()
    assert ((frequencies - expected).abs() <= 4 * standard_error).all()


def test_the_extreme_uniforms_pick_tokens_of_the_nucleus() -> None:
    logits = torch.tensor([-30.0, 1.0, 0.9, -40.0]).repeat(2, 1)
    uniforms = torch.tensor([[0.0], [1 - 2**-23]])
    chosen = SeededSampling(1.0, 0.9, uniforms, starts=1)(torch.zeros(2, 1).long(), logits)
    assert chosen.argmax(-1).tolist() == [1, 2]


def test_any_end_token_ends_the_answer(model, tokenizer) -> None:
    prompts = PROMPTS[:3]
    cut = generate_answers(model, tokenizer, prompts, max_new_tokens=2, temperature=0)
    assert [answer.finished for answer in cut] == [False] * 3
    first, second = tokenizer.convert_tokens_to_ids(cut[0].response.split())
    model.generation_config.eos_token_id = [first, second]
    ended = generate_answers(model, tokenizer, prompts[:1], max_new_tokens=2, temperature=0)
    assert ended == [Answer(prompts[0], "", finished=True)]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21
def test_adapters_can_be_on_or_off_and_the_model_is_left_as_it_was(model, tokenizer) -> None:
    options = {"max_new_tokens": 12, "temperature": 1.0}
    base = generate(model, tokenizer, PROMPTS, **options)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.train()
    side = tokenizer.padding_side
    with_adapter = generate(adapted, tokenizer, PROMPTS, **options)
    with adapted.disable_adapter():
        without_adapter = generate(adapted, tokenizer, PROMPTS, **options)
    assert with_adapter != base
    assert without_adapter == base
    assert adapted.training
    assert all(module.training for module in adapted.modules())
    assert tokenizer.padding_side == side
    adapted(torch.tensor([[5, 6]])).logits.sum().backward()


def test_the_models_own_sampling_settings_neither_apply_nor_warn(model, tokenizer) -> None:
    expected = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
    model.generation_config.update(
        do_sample=True, temperature=0.1, top_p=0.1, top_k=2, repetition_penalty=5.0
    )
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    transformers_logging.add_handler(handler)
    try:
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=12) == expected
    finally:
        transformers_logging.remove_handler(handler)
    assert [record.getMessage() for record in records] == []


def test_a_prompt_is_encoded_as_in_training(tokenizer) -> None:
    messages = [{"role": "user", "content": "w1 w2"}]
    chat = encode_prompt(tokenizer, messages)
    assert tokenizer.convert_ids_to_tokens(chat) == (
        ["<bos>", "<user>", "w1", "w2", "<eos>", "<assistant>"]
    )
    answers = [[{"role": "assistant", "content": text}] for text in ("w3", "w4")]
    pairs = {
        "plain": [{"prompt": "w1 w2 ", "chosen": "w3", "rejected": "w4"}],
        "chat": [{"prompt": messages, "chosen": answers[0], "rejected": answers[1]}],
    }
    for name, rows in pairs.items():
        sequence = tokenize_pairs({name: rows}, tokenizer).sequences[0]
        encoded = encode_prompt(tokenizer, rows[0]["prompt"])
        assert tuple(encoded) == sequence.input_ids[: sequence.prompt_length]


_OWN_ENDS = ("eos_token_id", "pad_token_id", "bos_token_id", "forced_eos_token_id")
_ODD: dict[type, Any] = {bool: True, int: 3, float: 0.37, str: "x", type(None): 2}


@pytest.mark.parametrize("adapter", [False, True])
def test_no_field_of_the_checkpoints_generation_config_has_a_part(
    tiny_llama: Any, tiny_lora: Any, tokenizer: Any, adapter: bool
) -> None:
    model = tiny_lora() if adapter else tiny_llama()
    prompts = [[{"role": "user", "content": "why is the cat red"}], "the dog"]

    def answers() -> list[list[Answer]]:
        return [
            generate_answers(model, tokenizer, prompts, max_new_tokens=6, temperature=temperature)
            for temperature in (0.0, 0.9)
        ]

    expected = answers()
    base = model.get_base_model() if adapter else model
    fields = vars(type(base.generation_config)())
    assert len(fields) > 40
    for name, value in fields.items():
        if name in _OWN_ENDS:
            continue
        for part in (model, base):
            setattr(part.generation_config, name, _ODD.get(type(value), value))
    for name, value in {"suppress_tokens": [20, 21], "bad_words_ids": [[30]], "made_up": 1}.items():
        setattr(base.generation_config, name, value)
    kept = base.generation_config
    assert answers() == expected
    assert base.generation_config is kept  # and is there again


def test_an_answer_ends_where_the_template_ends_a_turn(tiny_llama: Any, tokenizer: Any) -> None:
    import copy

    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<end>"]})
    other.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "<end>")
    end = other.convert_tokens_to_ids("<end>")
    model = tiny_llama()
    model.generation_config.eos_token_id = None
    chat = [[{"role": "user", "content": "why"}]]
    assert end_token_ids(model, other, chat) == sorted([other.eos_token_id, end])
    assert end_token_ids(model, other, ["why"]) == [other.eos_token_id]


def test_progress_counts_prompts(model, tokenizer) -> None:
    calls: list[tuple[int, int]] = []
    generate(
        model,
        tokenizer,
        PROMPTS,
        max_new_tokens=1,
        batch_size=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(n, 7) for n in range(1, 8)]
    assert generate(model, tokenizer, []) == []


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_out_of_range_are_named(model, tokenizer, options, name) -> None:
    with pytest.raises(InputError, match=name):
        generate(model, tokenizer, PROMPTS, **options)


def test_answers_survive_the_file(tmp_path: Path) -> None:
    answers = [
        Answer("plain", "line one\nline two\u2028three é", True, {"words": 5.0}),
        Answer([{"role": "user", "content": "hi"}], "", False),
    ]
    path = tmp_path / "new" / "answers.jsonl"
    write_answers(path, answers)
    assert read_answers(path) == answers
    assert [file.name for file in path.parent.iterdir()] == ["answers.jsonl"]
    path.write_text(path.read_text() + '{"question": 1}\n')
    with pytest.raises(InputError, match=r"answers\.jsonl, line 3"):
        read_answers(path)
