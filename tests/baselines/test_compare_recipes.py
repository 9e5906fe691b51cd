"""The shipped comparisons at the paper's settings: what they ask for, without a hub."""

from typing import Any

import pytest

from paretune.baselines.morlhf import Morlhf
from paretune.baselines.recipe import CompareRecipe, Entry, load_comparison
from paretune.baselines.rewarded_soups import RewardedSoups
from paretune.baselines.ric import Ric
from paretune.errors import InputError
from paretune.evaluation.reward_models import RewardInput
from paretune.recipes import load_recipe

TASKS = ("saferlhf_compare", "ultrafeedback_compare")
OUTPUTS = {"honesty": 8, "helpfulness": 9, "instruction_following": 6}


def options(recipe: CompareRecipe, name: str) -> list[Any]:
    return [entry.parsed for entry in recipe.methods if entry.name == name]


@pytest.mark.parametrize("name", TASKS)
def test_settings_are_those_of_table_8(name: str) -> None:
    recipe = load_comparison(name)
    (reinforced,) = options(recipe, "morlhf")
    (rewarded,) = options(recipe, "ric")
    (soup,) = [each for each in options(recipe, "rewarded_soups") if each.adapters == "ppo"]
    assert isinstance(soup, RewardedSoups)
    for ppo in (reinforced, soup.ppo):
        assert isinstance(ppo, Morlhf)
        assert (ppo.backend, ppo.learning_rate, ppo.clip) == ("ppo", 1e-5, 0.2)
        assert (ppo.kl_coefficient, ppo.kl_target) == (0.2, 3.0)
        assert (ppo.max_new_tokens, ppo.temperature) == (256, 0.7)
        assert ppo.rewards is None  # the recipe's
    assert isinstance(rewarded, Ric)
    assert (rewarded.offline_steps, rewarded.offline_learning_rate) == (20_000, 1e-4)
    assert (rewarded.online_steps, rewarded.online_learning_rate) == (4_000, 1e-5)
    assert (rewarded.batch_size, rewarded.max_new_tokens, rewarded.rewards) == (1, 256, None)
    paper, implicit = options(recipe, "modpo")
    assert (paper.margins, paper.beta) == ("scorer", 0.3)
    assert (implicit.margins, implicit.beta) == ("implicit", 0.3)


@pytest.mark.parametrize("size", ["llama8b", "qwen8b"])
def test_larger_models_are_compared_as_they_are_swept(size: str) -> None:
    compared = load_comparison(f"ultrafeedback_compare_{size}")
    swept = load_recipe(f"ultrafeedback_clamp_{size}")
    for section in ("model", "lora", "data", "loss", "train", "evaluation"):
        assert getattr(compared, section) == getattr(swept, section)
    assert [entry.title for entry in compared.methods] == ["CLAMP", "PWG", "MODPO", "RiC"]
    assert compared.rewards == load_comparison("ultrafeedback_compare").rewards


@pytest.mark.parametrize("name", TASKS)
def test_every_objective_has_the_papers_reward_model(name: str) -> None:
    recipe = load_comparison(name)
    assert recipe.rewards is not None
    assert set(recipe.rewards) == set(recipe.data.objectives)
    for objective, source in recipe.rewards.items():
        RewardInput(source.input, source.template, source.turns)
        assert source.scorer == "model"
        if name == "saferlhf_compare":
            assert source.name == f"Ray2333/gpt2-large-{objective}-reward_model"
            assert source.input == "pair"
        else:
            assert source.name == "RLHFlow/RewardModel-Mistral-7B-for-DPA-v1"
            assert source.label == OUTPUTS[objective]
            assert "rate the assistant's response from score 0-100" in str(source.template)


def test_rewards_are_of_the_recipes_objectives() -> None:
    good = load_recipe("demo", ["rewards.concise={scorer: demo, name: informative}"])
    assert good.rewards is not None
    assert good.rewards["concise"].name == "informative"
    with pytest.raises(InputError, match="there is no objective 'polite'"):
        load_recipe("demo", ["rewards.polite={scorer: demo}"])
    with pytest.raises(InputError, match="needs name, a folder or a hub id"):
        load_recipe("demo", ["rewards.concise={scorer: model}"])
    with pytest.raises(InputError, match=r"'rewards\.concise\.nam'.*'rewards\.concise\.name'"):
        load_recipe("demo", ["rewards.concise={scorer: demo, nam: x}"])


def test_options_that_0_1_kept_are_those_of_today() -> None:
    entry = Entry(name="clamp", options={"mu": 3.0})
    kept = {"name": "clamp", "radius": 0.4, "mu": 3.0, "mu_final": None, "mu_schedule": "constant"}
    assert entry.earlier({**kept, "scale_free": False, "loss_ema": 0.0}) == entry.settings
    assert entry.earlier({**kept, "mu": 4.0}) != entry.settings
    linear = Entry(name="linear")
    assert linear.earlier({**kept, "name": "linear"}) == linear.settings == {"name": "linear"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("methods.RiC.options.offline_stps=2", ["offline_stps", "did you mean 'offline_steps'"]),
        ("methods.Rics.options.offline_steps=2", ["no 'Rics'", "did you mean 'RiC'"]),
        ("methods.rewarded_soups.options.average=raw", ["several 'rewarded_soups'"]),
        ("methods.RiC.optons.x=2", ["'methods.RiC.optons'", "'methods.RiC.options'"]),
        ("methods.RiC.name=rick", ["'rick'", "'ric'"]),
        ("model.shard=true", ["not for Rewarded Soups (PPO), MORLHF, RiC", "set it to false"]),
    ],
)
def test_mistakes(override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_comparison("saferlhf_compare", [override])
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_one_option_of_one_method() -> None:
    recipe = load_comparison("saferlhf_compare", ["methods.RiC.options.offline_steps=2"])
    assert options(recipe, "ric")[0].offline_steps == 2
    raw = "methods.Rewarded Soups (DPO).options.average=raw"
    found = options(load_comparison("saferlhf_compare", [raw]), "rewarded_soups")
    assert [each.average for each in found] == ["raw", "exact"]
    assert load_comparison("saferlhf_compare", ["methods.raco.seeds=[3]"]).methods[2].seeds == [3]
