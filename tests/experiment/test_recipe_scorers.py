"""A recipe's own scorers: loaded once, used in measuring, seen to be there before training."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paretune.baselines.context import Context
from paretune.baselines.reward import normalised_scorers
from paretune.data.splitting import split_by_prompt
from paretune.errors import InputError
from paretune.evaluation.scorers import answers_of
from paretune.experiment.reward_sources import recipe_scorers, recipe_sources
from paretune.experiment.setup import load_data
from paretune.recipes import Recipe, load_recipe
from paretune.results.answers import read_answers
from paretune.runs.sweep import run_sweep

WORDS = ["red", "blue", "cat", "dog", "tea", "milk", "sun", "moon", "rain", "wind", "run"]


@pytest.fixture
def recipe(tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any]) -> Callable[..., Recipe]:
    """A sweep of one point on a random model, scored by a random reward model with two outputs."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_llama(num_labels=2).save_pretrained(tmp_path / "reward")
    for name in ("model", "reward"):
        tokenizer.save_pretrained(tmp_path / name)
    rows = [
        {
            "prompt": f"{WORDS[row % 11]} {WORDS[row // 11]} why",
            "response_0": f"{WORDS[row % 7]} red",
            "response_1": f"{WORDS[row % 5]} blue",
            "better_response_id": row % 2,
            "safer_response_id": row // 2 % 2,
        }
        for row in range(20)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tiny.yaml").write_text(
        f"""
model: {{name: {tmp_path / "model"}}}
lora: {{r: 4, alpha: 8}}
data:
  loader: safe_rlhf
  path: {tmp_path / "pairs.jsonl"}
  objectives: [harmless, helpful]
  split: [0.6, 0.2, 0.2]
train: {{max_steps: 1, per_device_train_batch_size: 4, learning_rate: 1e-2, use_cpu: true}}
sweep: {{preferences: [[0.2, 0.8]]}}
rewards:
  harmless: {{scorer: model, name: {tmp_path / "reward"}, label: 0, batch_size: 2}}
  helpful: {{scorer: model, name: {tmp_path / "reward"}, label: 1, lower_is_better: true}}
evaluation: {{n_prompts: 3, max_new_tokens: 4, temperature: 1.0}}
output_dir: {tmp_path / "run"}
"""
    )
    return lambda *overrides: load_recipe(tmp_path / "tiny.yaml", overrides)


@pytest.mark.slow
def test_answers_of_a_point_are_scored(recipe: Callable[..., Recipe]) -> None:
    loaded = recipe()
    (point,) = run_sweep(loaded).points
    answers = read_answers(Path(loaded.output_dir) / point.folder / "answers.jsonl")
    scorers = recipe_scorers(loaded)
    assert list(point.scores) == ["harmless", "helpful"]
    for name, scorer in scorers.items():
        found = scorer.score([a.prompt for a in answers], [a.response for a in answers])
        assert [a.scores[name] for a in answers] == pytest.approx(found, abs=1e-5)
        assert point.scores[name].mean == pytest.approx(sum(found) / 3, abs=1e-5)
    assert recipe_scorers(loaded) is scorers  # loaded once
    models: Any = scorers
    assert models["harmless"].model is models["helpful"].model
    assert point.text is not None
    assert point.text.count == 3


def test_methods_take_the_recipes_scorers(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    loaded = recipe()
    splits = split_by_prompt(load_data(loaded.data), loaded.data.split, loaded.data.seed)
    job = Context(loaded, splits, 0, tmp_path / "job", tmp_path / "shared")
    made = normalised_scorers(job, None, ["helpful"])
    assert made["helpful"].scorer.scorer is recipe_scorers(loaded)["helpful"]
    scores = made["helpful"].scorer.score(*answers_of(splits["train"]))
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-4)
    with pytest.raises(InputError, match="Nothing scores the objective 'helpful'"):
        normalised_scorers(
            Context(recipe("rewards="), splits, 0, tmp_path, tmp_path), None, ["helpful"]
        )


def test_what_is_not_there_is_said_before_training(recipe: Callable[..., Recipe]) -> None:
    loaded = recipe("rewards={helpful: {scorer: trained}}")
    with pytest.raises(InputError, match="holds no finished reward model"):
        run_sweep(loaded)
    assert not (Path(loaded.output_dir) / "points").exists()
    with pytest.raises(InputError, match="The demo has no scorer 'helpful'"):
        run_sweep(recipe("rewards={helpful: {scorer: demo}}"))


def test_the_demo_has_its_own() -> None:
    demo = load_recipe("demo")
    assert {name: source.scorer for name, source in recipe_sources(demo).items()} == {
        "concise": "demo",
        "informative": "demo",
    }
    other: Any = SimpleNamespace(rewards=None, data=SimpleNamespace(loader="pairs", objectives="x"))
    assert recipe_sources(other) == {}


def test_results_stand_on_the_reward_models_that_scored_them(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    from paretune.experiment.reward_sources import reward_ground
    from paretune.runs.folder import RunFolder
    from paretune.runs.preparation import load_splits

    loaded = recipe()
    folder = RunFolder(Path(loaded.output_dir), None)
    load_splits(loaded, folder)
    noted = folder.manifest["ground"]["rewards"]
    assert noted == reward_ground(loaded)["rewards"]
    assert any(name.endswith("/model.safetensors") for name in noted)
    path = tmp_path / "reward" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(
        InputError, match=r"The reward model's 'harmless/model\.safetensors'.*chang"
    ):
        load_splits(loaded, folder)
