"""Rewards-in-Context: its maps and filters by hand, and a run that is cut short at every stage."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import load_peft_weights

from paretune.baselines.context import Context
from paretune.baselines.ric import (
    Ric,
    Sample,
    keep_good,
    online_goals,
    score_ranges,
    target_scores,
)
from paretune.baselines.score_prompts import ScorePrompt, with_scores
from paretune.data.splitting import split_by_prompt
from paretune.errors import InputError
from paretune.experiment.setup import load_data
from paretune.moo.preference import Preference
from paretune.recipes.load import load_recipe
from paretune.results.points import read_spend

RANGES = {"a": (-4.0, 4.0), "b": (-3.0, 5.0)}
POINTS = [
    Preference.of({"concise": 0.8, "informative": 0.2}),
    Preference.of({"concise": 0.0, "informative": 1.0}),
]


def options(**changes: Any) -> Ric:
    small: dict[str, Any] = {
        "batch_size": 2,
        "offline_steps": 3,
        "offline_learning_rate": 1e-3,
        "online_steps": 2,
        "online_prompts": 6,
        "offline_mixed": 4,
        "max_new_tokens": 8,
        "temperature": 1.0,
        "top_p": 1.0,
        "save_steps": 1,
    }
    return Ric(**small | changes)


@pytest.fixture
def make_context(
    tiny_llama: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> Callable[..., Context]:
    model = tmp_path / "model"
    tiny_llama(initializer_range=0.3).save_pretrained(model)
    tokenizer.save_pretrained(model)

    def make(name: str = "run", *overrides: str) -> Context:
        recipe = load_recipe("demo_sweep", [f"model.name={model}", *overrides])
        splits = split_by_prompt(load_data(recipe.data), recipe.data.split)
        return Context(recipe, splits, 0, tmp_path / name, tmp_path / name / "shared")

    return make


@pytest.fixture
def short_answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers that end, which the tiny model's hardly do, in place of its own."""
    asked: list[str] = []

    def generate(model: Any, tokenizer: Any, prompts: Any, **_: Any) -> list[Any]:
        from paretune.results.answers import Answer

        asked.extend(p if isinstance(p, str) else p[-1]["content"] for p in prompts)
        texts = ["Walk a little every day.", "Rest, drink water, call a friend and go out.", ""]
        return [Answer(p, texts[i % 3], finished=i != 1) for i, p in enumerate(prompts)]

    monkeypatch.setattr("paretune.evaluation.generation.generate_answers", generate)
    return asked


def test_target_scores_by_hand() -> None:
    p = {"a": 0.6, "b": 0.4}
    length = math.hypot(0.6, 0.4)
    assert target_scores(p, RANGES, "l2") == {
        "a": round(-4 + 8 * 0.6 / length, 1),
        "b": round(-3 + 8 * 0.4 / length, 1),
    }
    assert target_scores(p, RANGES, "linear") == {"a": 0.8, "b": 0.2}
    assert target_scores(p, RANGES, "linf") == {"a": 4.0, "b": 3.4}
    assert target_scores({"a": 1.0, "b": 0.0}, RANGES, "l2") == {"a": 4.0, "b": -3.0}


def test_ranges_are_extremes_of_normal_draws() -> None:
    ranges = score_ranges(["a", "b"], seed=0)
    assert all(-6 < low < -3.5 and 3.5 < high < 6 for low, high in ranges.values())
    assert ranges["a"] != ranges["b"]
    assert ranges == score_ranges(["a", "b"], seed=0)


def test_goals_ask_for_the_top_of_all_but_one() -> None:
    goals = online_goals(RANGES | {"c": (-4.0, 4.0)}, 500, seed=0)
    top = {"a": 4.0, "b": 5.0, "c": 4.0}
    below = [[name for name in top if goal[name] < top[name]] for goal in goals]
    assert all(len(names) <= 1 for names in below)
    assert {name for names in below for name in names} == set(top)
    assert all(goal[n] >= -4 for goal in goals for n in goal)


def test_good_answers_reach_a_quantile_in_one_score() -> None:
    rng = np.random.default_rng(0)
    samples = [
        Sample("q", str(i), {"a": float(x), "b": float(y)})
        for i, (x, y) in enumerate(rng.standard_normal((40, 2)))
    ]
    good = keep_good(samples, 0.7)
    cut = {n: np.quantile([s.scores[n] for s in samples], 0.7) for n in "ab"}
    assert good == [s for s in samples if s.scores["a"] >= cut["a"] or s.scores["b"] >= cut["b"]]
    assert keep_good([], 0.7) == []


@pytest.mark.parametrize(
    "prompt",
    [
        "Human: Who was Kant?\n\nAssistant:",
        "A plain question, an ant's",
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi 1.5"}],
    ],
)
def test_scores_in_a_prompt_can_be_read_back(prompt: Any) -> None:
    scores = {"concise": -1.2, "informative": 0.0}
    asked = with_scores(prompt, scores)
    text = asked if isinstance(asked, str) else asked[-1]["content"]
    found = {n: float(v) for n, v in re.findall(r"<(\w+)_score> (-?[\d.]+)", text)}
    assert found == scores
    bare = re.sub(r" <concise_score>.*?<informative_score> -?[\d.]+", "", text)
    assert bare == (prompt if isinstance(prompt, str) else prompt[-1]["content"])


TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Who was Kant? "},
    {"role": "assistant", "content": " An ant."},
    {"role": "user", "content": "No."},
]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        # What add_score_assistant of the authors' prepare_dataset_with_rewards.py makes.
        ("\n\nHuman: Who was Kant? \n\nAssistant:", "\n\nHuman: Who was Kant?"),
        ("Who was Kant?", "\n\nHuman: Who was Kant?"),
        (
            TALK,
            "\n\nHuman: Be kind.\n\nWho was Kant?\n\nAssistant: An ant.\n\nHuman: No.",
        ),
    ],
)
def test_the_authors_template_is_a_plain_dialogue(
    prompt: Any, words: str, tokenizer: Any, tmp_path: Path
) -> None:
    asked = ScorePrompt({"harmless": 1.24, "helpful": -0.3}, "authors")
    text = f"{words} <rm1_score> 1.2 <rm2_score> -0.3 \n\nAssistant:"
    assert asked.prompt(prompt) == text
    assert asked.response(prompt, "A philosopher.\n") == " A philosopher."
    sides = {"chosen": "yes", "rejected": " no"}
    if prompt is TALK:
        sides = {k: [{"role": "assistant", "content": v}] for k, v in sides.items()}  # type: ignore[misc]
    row = asked.row({"prompt": prompt, **sides, "weight": 2.0})
    assert row == {"prompt": text, "chosen": " yes", "rejected": " no", "weight": 2.0}
    asked.write(tmp_path)
    assert ScorePrompt.of(tmp_path) == asked


def test_scores_of_the_chat_template_stand_alone_in_their_file(tmp_path: Path) -> None:
    scores = {"a": 1.0, "template": 0.5}  # objectives may have that name
    asked = ScorePrompt(scores)
    asked.write(tmp_path)
    assert json.loads((tmp_path / "prompt.json").read_text()) == scores
    assert ScorePrompt.of(tmp_path) == asked
    assert asked.prompt("Hi") == with_scores("Hi", scores)
    assert asked.response("Hi", " yes") == " yes"
    assert asked.response(TALK, "yes") == [{"role": "assistant", "content": "yes"}]
    assert ScorePrompt.of(tmp_path / "none") is None


@pytest.mark.slow
def test_the_authors_template_is_trained_and_answered(
    make_context: Callable[..., Context], short_answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paretune.data import tokenization

    imitated: list[Any] = []
    tokenize = tokenization.tokenize_responses

    def seen(rows: Any, *args: Any) -> Any:
        imitated.append(rows)
        return tokenize(rows, *args)

    monkeypatch.setattr(tokenization, "tokenize_responses", seen)
    context = make_context()
    options(template="authors").train(context, POINTS[:1])
    assert ScorePrompt.of(context.point(POINTS[0])).template == "authors"  # type: ignore[union-attr]
    assert len(short_answers) == 6
    asked = [row["prompt"] for rows in imitated for row in rows]
    for text in (*short_answers, *asked):
        assert re.search(r" <rm1_score> -?[\d.]+ <rm2_score> -?[\d.]+ \n\nAssistant:\Z", text)
    online = [row["completion"] for row in imitated[1]]
    assert " Walk a little every day." in online
    assert all(answer.startswith(" ") and answer[1:] == answer.strip() for answer in online)


@pytest.mark.slow
def test_one_adapter_for_all_points_gone_on_with_at_every_stage(
    make_context: Callable[..., Context], short_answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_context("whole")
    options().train(whole, POINTS)
    (built,) = (path for path in whole.shared.iterdir() if path.name.startswith("ric-"))
    first, second = (load_peft_weights(str(whole.point(point)), device="cpu") for point in POINTS)
    assert all(torch.equal(first[name], second[name]) for name in first)
    targets = [json.loads((whole.point(p) / "prompt.json").read_text()) for p in POINTS]
    assert targets[1]["informative"] > targets[0]["informative"]
    assert targets[0]["concise"] > targets[1]["concise"]
    assert len(short_answers) == 6
    assert all("<concise_score>" in text for text in short_answers)
    stages = [read_spend(built / stage).policy_tokens for stage in ("offline", "round-1")]
    assert min(stages) > 0
    spend = read_spend(built)
    assert spend.policy_tokens == sum(stages)
    assert spend.generated_tokens == read_spend(built / "round-1/answers").generated_tokens > 0
    answered = json.loads((built / "round-1/answers/training.json").read_text())
    assert (answered["answered"], answered["usable"]) == (6, 3)  # empty and cut ones are dropped

    class Killed(BaseException):
        pass

    cut = make_context("cut")
    from paretune.training.checkpoints import CompleteCheckpoints

    saved = CompleteCheckpoints.on_save
    count = [0]

    def dies(self: Any, *args: Any, **named: Any) -> None:
        saved(self, *args, **named)
        count[0] += 1
        raise Killed

    monkeypatch.setattr(CompleteCheckpoints, "on_save", dies)
    for _ in range(10):
        try:
            options().train(cut, POINTS)
            break
        except Killed:
            continue
    assert count[0] == 5
    again = load_peft_weights(str(cut.point(POINTS[0])), device="cpu")
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.slow
def test_a_reward_model_reads_every_answer_once(
    make_context: Callable[..., Context],
    tiny_llama: Callable[..., Any],
    tokenizer: Any,
    short_answers: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Once for the outputs of all objectives, and for normalising and imitating together."""
    reward = tmp_path / "reward"
    tiny_llama(num_labels=2, initializer_range=0.3).save_pretrained(reward)
    tokenizer.save_pretrained(reward)
    read: list[list[int]] = []  # what goes through the model, row by row
    from paretune.experiment import reward_sources

    load = reward_sources.load_reward_model

    def watched(*args: Any, **named: Any) -> tuple[Any, Any]:
        model, tokens = load(*args, **named)

        def note(module: Any, args: Any, inputs: dict[str, Any]) -> None:
            rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
            read.extend(ids[kept.bool()].tolist() for ids, kept in rows)

        model.register_forward_pre_hook(note, with_kwargs=True)
        return model, tokens

    monkeypatch.setattr(reward_sources, "load_reward_model", watched)
    outputs = [
        f"{name}: {{scorer: model, name: '{reward}', label: {label}, max_length: 64}}"
        for label, name in enumerate(POINTS[0])
    ]
    context = make_context("run", f"rewards={{{', '.join(outputs)}}}")
    options(offline_steps=1, online_steps=1).train(context, POINTS)

    answers = context.splits["train"]
    rows = [row for name in POINTS[0] for row in answers.pairs[name]]
    given = {
        (str(row["prompt"]), str(row[side])) for row in rows for side in ("chosen", "rejected")
    }
    (built,) = context.shared.glob("ric-*")
    usable = json.loads((built / "round-1/answers/training.json").read_text())["usable"]
    assert usable == 3
    assert len(read) == len(given) + usable
    noted = [read_spend(path.parent) for path in context.shared.glob("*/training.json")]
    assert sum(spend.reward_tokens for spend in noted) == sum(map(len, read))
    assert read_spend(built).reward_tokens == sum(map(len, read[len(given) :]))


@pytest.mark.slow
def test_mistakes(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="needs a lora section"):
        options().train(make_context("full", "lora=null"), POINTS)
    from paretune.results.answers import Answer

    monkeypatch.setattr(
        "paretune.evaluation.generation.generate_answers",
        lambda model, tokenizer, prompts, **_: [Answer(p, "and so on", False) for p in prompts],
    )
    with pytest.raises(InputError, match="None of the 6 online answers ended"):
        options(offline_steps=1).train(make_context("endless"), POINTS)
