"""Reward models of other people: form of input, padding, labels, truncation."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paretune.data.messages import user
from paretune.errors import InputError
from paretune.evaluation.reward_models import (
    Outputs,
    RewardInput,
    RewardModelScorer,
    load_reward_model,
)
from paretune.evaluation.scorers import normalise, pair_accuracy

PROMPTS: list[Any] = [
    user("how can we make bread"),
    user("what is the moon"),
    [{"role": "system", "content": "good"}, *user("why")],
    "who was it",
]
RESPONSES = ["fish and salt", "no", "a slow red bird and a small warm cat", "yes please"]


def make_classifier(tokenizer: Any, kind: str = "llama", labels: int = 1, **options: Any) -> Any:
    """A tiny random reward model; the GPT-2 like one has two outputs and pads with its end."""
    from transformers import (
        GPT2Config,
        GPT2ForSequenceClassification,
        LlamaConfig,
        LlamaForSequenceClassification,
    )

    torch.manual_seed(3)
    common = {"vocab_size": len(tokenizer), "num_labels": labels, **options}
    model: Any
    if kind == "gpt2":
        config = GPT2Config(
            n_positions=64, n_embd=32, n_layer=2, n_head=4, eos_token_id=3, bos_token_id=3, **common
        )
        config.pad_token_id = 3
        model = GPT2ForSequenceClassification(config)
    else:
        model = LlamaForSequenceClassification(
            LlamaConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                eos_token_id=3,
                **common,
            )
        )
    torch.nn.init.normal_(model.score.weight)
    return model.eval()


PAIR = RewardInput("pair", "{prompt} <nl>", {"user": " <nl> user {content}"})
TEXT = RewardInput("text", "rate {prompt} | {response} {eos}")


@pytest.mark.parametrize(
    ("kind", "form", "label"),
    [("llama", RewardInput(), None), ("llama", TEXT, None), ("gpt2", PAIR, 1), ("gpt2", TEXT, 0)],
)
def test_batched_is_one_by_one(tokenizer: Any, kind: str, form: RewardInput, label: Any) -> None:
    model = make_classifier(tokenizer, kind, labels=1 if label is None else 2)

    def score(batch_size: int, prompts: list[Any], responses: list[str]) -> list[float]:
        scorer = RewardModelScorer(
            model, tokenizer, name="m", input=form, label=label, batch_size=batch_size
        )
        return scorer.score(prompts, responses)

    single = [score(1, [p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert len({round(s, 4) for s in single}) == 4
    for batch_size in (2, 3, 8):
        assert score(batch_size, PROMPTS, RESPONSES) == pytest.approx(single, abs=1e-5)
    assert score(3, PROMPTS[::-1], RESPONSES[::-1]) == pytest.approx(single[::-1], abs=1e-5)


def test_the_score_is_the_models_output_at_the_last_token(tokenizer: Any) -> None:
    model = make_classifier(tokenizer, labels=3)
    scorer = RewardModelScorer(model, tokenizer, name="m", input=TEXT, label=2)
    ids = tokenizer("rate who was it | yes please <|im_end|>", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0, -1]) == "<|im_end|>"
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state[0, -1]
        expected = (hidden @ model.score.weight[2]).item()
    assert scorer.score(["who was it"], ["yes please"])[0] == pytest.approx(expected, abs=1e-5)
    assert scorer.tokens == ids.shape[1]


def test_outputs_of_one_model_are_read_once_for_all_objectives(tokenizer: Any) -> None:
    model = make_classifier(tokenizer, labels=3)
    shared, moved = Outputs(), list[Any]()
    model.to = moved.append  # type: ignore[method-assign]

    def scorer(label: int, **more: Any) -> RewardModelScorer:
        return RewardModelScorer(model, tokenizer, name="m", input=TEXT, label=label, **more)

    three = [scorer(label, outputs=shared, device="cuda") for label in range(3)]
    scores = [each.score(PROMPTS, RESPONSES) for each in three]
    assert scores == [scorer(label).score(PROMPTS, RESPONSES) for label in range(3)]
    assert len({tuple(each) for each in scores}) == 3
    assert three[0].tokens > 0
    assert [each.tokens for each in three[1:]] == [0, 0]
    assert moved == ["cuda", "cpu"]  # it leaves the card when it has scored
    assert three[1].score(PROMPTS[:2], RESPONSES[:2]) == pytest.approx(scores[1][:2])
    assert three[1].tokens > 0


def test_chat_input_is_the_chat_template(tokenizer: Any) -> None:
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        messages = [*(user(prompt) if isinstance(prompt, str) else prompt)]
        expected = tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": response}], return_dict=False
        )
        assert RewardInput().encode(tokenizer, prompt, response)["input_ids"] == expected


def test_templates_fill_in_and_leave_the_rest_alone(tokenizer: Any) -> None:
    def text(form: RewardInput, prompt: Any) -> str:
        return str(
            tokenizer.decode(form.encode(tokenizer, prompt, "yes {prompt} {x}")["input_ids"])
        )

    plain = RewardInput("text", "[ {prompt} ] {a} {response}")
    unknown = "<unk>"
    assert text(plain, "cat {response}") == " ".join(
        [unknown, "cat", unknown, unknown, unknown, "yes", unknown, unknown]
    )
    turns = {"user": "user {content} <nl> ", "assistant": "assistant {content} <nl> "}
    several = [
        {"role": "system", "content": "moon"},
        *user("cat"),
        {"role": "assistant", "content": "dog"},
        *user("bird"),
    ]
    form = RewardInput("pair", "{prompt}assistant", turns)
    assert text(form, several) == (
        f"user cat <nl> assistant dog <nl> user bird <nl> assistant yes {unknown} {unknown}"
    )
    assert text(form, "cat") == f"user cat <nl> assistant yes {unknown} {unknown}"
    with pytest.raises(InputError, match="turns"):
        text(plain, several)


def test_label_and_sign(tokenizer: Any) -> None:
    names = {0: "bad", 1: "good"}
    model = make_classifier(
        tokenizer, labels=2, id2label=names, label2id={v: k for k, v in names.items()}
    )

    def score(**options: Any) -> list[float]:
        scorer = RewardModelScorer(model, tokenizer, name="m", **options)
        return scorer.score(PROMPTS, RESPONSES)

    assert score(label="good") == score(label=1) != score(label=0)
    assert score(label=1, lower_is_better=True) == [-s for s in score(label=1)]
    with pytest.raises(InputError, match=r"2 outputs \(bad, good\): say which"):
        score()
    with pytest.raises(InputError, match=r"label 'fair' is none.*number or its name"):
        score(label="fair")
    with pytest.raises(InputError, match="label 2 is none"):
        score(label=2)


def test_truncation_is_counted(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = make_classifier(tokenizer)
    form = RewardInput("text")
    scorer = RewardModelScorer(model, tokenizer, name="tiny", input=form, max_length=4)
    with caplog.at_level(logging.WARNING, logger="paretune"):
        scores = scorer.score(["a cat ", "a cat "], ["is", "is a good warm bird"])
    assert scorer.truncated == 1
    assert scorer.tokens == 3 + 4
    assert "tiny: 1 of 2 inputs were longer than 4 tokens" in caplog.text
    assert scores[1] == pytest.approx(scorer.score(["a cat "], ["is a"])[0], abs=1e-5)
    # Without a limit it is the model's own: 64 positions.
    own = RewardModelScorer(model, tokenizer, name="tiny", input=form)
    own.score(["cat "], ["dog " * 100])
    assert (own.truncated, own.tokens) == (1, 64)


def test_any_scorer_can_be_measured_and_normalised(
    tokenizer: Any, random_pairs: Callable[..., Any]
) -> None:
    from datasets import Dataset

    from paretune.data import PreferenceData

    rows = random_pairs(n=5)
    scorer = RewardModelScorer(make_classifier(tokenizer), tokenizer, name="m")
    accuracies = [pair_accuracy(scorer, rows[name]) for name in ("one", "two")]
    assert sum(accuracies) == pytest.approx(1)  # opposite labels on the same pairs
    split = PreferenceData({name: Dataset.from_list(each) for name, each in rows.items()}, {})
    assert normalise(scorer, split).std > 0


def test_loading(tokenizer: Any, tmp_path: Path, tiny_llama: Callable[..., Any]) -> None:
    folder = tmp_path / "reward"
    model = make_classifier(tokenizer, "gpt2", labels=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded, its = load_reward_model(folder)
    assert loaded.config.pad_token_id == 3  # the model's own, not the tokenizer's

    def scores(m: Any, t: Any) -> list[float]:
        return RewardModelScorer(m, t, name="m", input=PAIR, label=1).score(PROMPTS, RESPONSES)

    assert scores(loaded, its) == pytest.approx(scores(model, tokenizer))
    tiny_llama().save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    with pytest.raises(InputError, match=r"no score head.*score\.weight"):
        load_reward_model(tmp_path / "llama")
    with pytest.raises(InputError, match="does not exist"):
        load_reward_model(tmp_path / "absent")


def test_an_adapter_that_is_not_whole_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """PEFT leaves what a file lacks as it was drawn, which would score at random."""
    import json

    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    make_classifier(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base, _ = load_reward_model(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    settings, weights = (
        tmp_path / "adapter" / name for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    load_reward_model(tmp_path / "adapter")
    tensors = load_file(weights)
    for kept in ({}, {k: v for k, v in tensors.items() if "score" not in k}):
        save_file(kept, weights)
        with pytest.raises(InputError, match="adapter' is not whole"):
            load_reward_model(tmp_path / "adapter")
    weights.write_bytes(b"")
    with pytest.raises(InputError, match="adapter' is not whole"):
        load_reward_model(tmp_path / "adapter")
    known = json.loads(settings.read_text())
    for wrong in ({"base_model_name_or_path": None}, {"megatron_config": {"a": 1}}):
        settings.write_text(json.dumps({**known, **wrong}))
        with pytest.raises(InputError, match="not the configuration of a reward model's adapter"):
            load_reward_model(tmp_path / "adapter")


def test_mistakes_are_one_sentence(tokenizer: Any) -> None:
    for form, words in (
        ({"kind": "text", "template": "{prompt}"}, r"must hold \{response\}"),
        ({"kind": "text", "template": "{response}"}, r"must hold \{prompt\}"),
        ({"kind": "pair", "template": "{prompt}{response}"}, r"leave \{response\} out"),
        ({"kind": "chat", "template": "{prompt}"}, "leave out template"),
        ({"kind": "text", "turns": {"user": "x"}}, r"\{content\} for user"),
        ({"kind": "text", "turns": {"assistant": "{content}"}}, "for user"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            RewardInput(**form)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    model = make_classifier(tokenizer)
    with pytest.raises(InputError, match="nothing to read"):
        RewardModelScorer(model, tokenizer, name="m", input=RewardInput("text")).score([""], [""])
    model.score.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        RewardModelScorer(model, tokenizer, name="m").score(["cat"], ["dog"])
    from copy import copy

    bare = copy(tokenizer)
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        RewardInput().encode(bare, "cat", "dog")
    bare.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(InputError, match=r"refuses.*no system role"):
        RewardInput().encode(bare, "cat", "dog")
