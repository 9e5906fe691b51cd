"""MORLHF: the preference decides which reward wins; a run goes on where it was, once only."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, load_peft_weights
from pydantic import ValidationError

from paretune.baselines import morlhf
from paretune.baselines.context import Context, trained
from paretune.baselines.morlhf import Morlhf
from paretune.baselines.ppo import PPO
from paretune.baselines.reward import ScalarReward
from paretune.data.splitting import split_by_prompt
from paretune.errors import InputError
from paretune.evaluation.scorers import FunctionScorer, Normalised
from paretune.experiment.setup import load_data
from paretune.moo.preference import Preference
from paretune.recipes.load import load_recipe
from paretune.recipes.rewards import RewardSource

P = Preference.of({"concise": 0.8, "informative": 0.2})
CORNER = Preference.of({"concise": 1.0, "informative": 0.0})


def options(**changes: Any) -> Morlhf:
    small: dict[str, Any] = {
        "steps": 3,
        "batch_size": 4,
        "mini_batch_size": 2,
        "epochs": 2,
        "max_new_tokens": 6,
        "temperature": 1.0,
        "learning_rate": 1e-2,
        "save_steps": 2,
    }
    return Morlhf(**small | changes)


@pytest.fixture
def make_context(
    tiny_llama: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> Callable[..., Context]:
    model = tmp_path / "model"
    tiny_llama(initializer_range=0.3).save_pretrained(model)
    tokenizer.save_pretrained(model)

    def make(name: str = "run", *overrides: str) -> Context:
        recipe = load_recipe("demo_sweep", [f"model.name={model}", "train.max_steps=2", *overrides])
        splits = split_by_prompt(load_data(recipe.data), recipe.data.split)
        return Context(recipe, splits, 0, tmp_path / name, tmp_path / name / "shared")

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_peft_weights(str(folder), device="cpu"))


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def word(name: str, std: float = 1.0) -> Normalised:
    return Normalised(FunctionScorer(name, lambda _, text: std * (text == name)), 0.0, std)


@pytest.mark.slow
def test_the_preference_decides_which_of_two_rewards_wins(
    tiny_llama: Callable[..., Any], tokenizer: Any
) -> None:
    settings = options(
        steps=8,
        batch_size=32,
        mini_batch_size=16,
        epochs=3,
        max_new_tokens=1,
        learning_rate=2e-2,
        kl_coefficient=0.0,
        kl_target=None,
    )
    prompt = torch.tensor([tokenizer("red blue")["input_ids"]])

    def model_and_odds() -> tuple[Any, Callable[[], torch.Tensor]]:
        torch.manual_seed(0)
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        model = get_peft_model(tiny_llama(initializer_range=0.3), lora)
        return model, lambda: model(prompt).logits[0, -1].softmax(-1).detach()

    likely = model_and_odds()[1]().argsort(descending=True).tolist()
    pair = [i for i in likely if i not in tokenizer.all_special_ids][:2]
    names = tokenizer.convert_ids_to_tokens(pair)
    # The scale of a reward must not matter: it is normalised.
    scorers = {names[0]: word(names[0], std=100.0), names[1]: word(names[1])}
    shares = []
    for p in (0.9, 0.1):
        model, odds = model_and_odds()
        reward = ScalarReward(scorers, dict(zip(names, (p, 1 - p), strict=True)))
        ppo = PPO(model, tokenizer, ["red blue"], reward, settings)
        while ppo.progress < 1:
            ppo.step()
        shares.append(odds()[pair].tolist())
        first, second = (ppo.log[0][f"{name}/normalised"] for name in names)
        assert reward(["red blue"] * 2, names)[0] == pytest.approx([p, 1 - p])
        assert ppo.log[0]["reward"] <= p * first + (1 - p) * second  # less what has no end
        assert ppo.log[0][f"{names[0]}/score"] == pytest.approx(100 * first)
    assert shares[0][0] > 0.8 > 0.2 > shares[0][1]
    assert shares[1][1] > 0.8 > 0.2 > shares[1][0]


@pytest.mark.slow
def test_a_point_is_an_adapter_and_is_trained_once(make_context: Callable[..., Context]) -> None:
    context = make_context()
    options(stop_kl=None).train(context, [P, CORNER])
    for preference in (P, CORNER):
        folder = context.point(preference)
        assert trained(folder)
        assert sorted(path.name for path in folder.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "log.jsonl",
            "training.json",
        ]
        assert all("lora" in name for name in weights(folder))
    rows = [json.loads(row) for row in (context.point(P) / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {"concise/score", "informative/normalised", "kl", "clip_fraction", "entropy"} <= {
        *rows[0]
    }
    corner = json.loads((context.point(CORNER) / "log.jsonl").read_text().splitlines()[0])
    assert "informative/score" not in corner
    record = json.loads((context.point(P) / "training.json").read_text())
    assert [key.rsplit("-", 1)[0] for key in record["shared"]] == [
        "normalisation-concise",
        "normalisation-informative",
    ]
    assert all(trained(context.shared / key) for key in record["shared"])
    spend = record["spend"]
    assert spend["policy_tokens"] == sum(row["policy_tokens"] for row in rows)
    assert spend["reference_tokens"] == spend["policy_tokens"]  # two readings, two epochs
    assert spend["reward_tokens"] == 0
    before = (context.point(P) / "training.json").stat().st_mtime_ns
    options(stop_kl=None).train(context, [P, CORNER])
    assert (context.point(P) / "training.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_adapter(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_context("whole")
    options().train(whole, [P])
    step = PPO.step
    for last in (1, 2):  # before and after the first checkpoint
        cut = make_context(f"cut{last}")

        def dying(self: PPO, last: int = last) -> dict[str, float]:
            if self.done == last:
                raise KeyboardInterrupt
            return step(self)

        monkeypatch.setattr(PPO, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            options().train(cut, [P])
        assert not trained(cut.point(P))
        monkeypatch.setattr(PPO, "step", step)
        options().train(cut, [P])
        assert equal(weights(whole.point(P)), weights(cut.point(P)))
        assert len((cut.point(P) / "log.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_without_steps_the_budget_of_all_methods_is_spent(
    make_context: Callable[..., Context],
) -> None:
    context = make_context()
    options(steps=None, batch_size=16, mini_batch_size=8, epochs=4).train(context, [P])
    rows = [json.loads(row) for row in (context.point(P) / "log.jsonl").read_text().splitlines()]
    from paretune.baselines.budget import policy_tokens
    from paretune.models import load_model_and_tokenizer

    _, tokenizer = load_model_and_tokenizer(context.recipe.model.name)
    budget = policy_tokens(context, P, tokenizer)
    spent = [row["policy_tokens"] for row in rows]
    assert sum(spent[:-1]) < budget <= sum(spent)


@pytest.mark.slow
def test_single_objective_adapters_are_shared(make_context: Callable[..., Context]) -> None:
    context = make_context()
    folder = morlhf.single_objective(context, "concise", options())
    assert trained(folder)
    assert folder.parent == context.shared
    assert folder.name.startswith("ppo-concise-seed0-")
    assert folder == morlhf.single_objective(context, "concise", options())
    options().train(context, [CORNER])
    assert equal(weights(folder), weights(context.point(CORNER)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other libraries'
def test_rloo_trains_an_adapter_and_goes_on(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = options(backend="rloo", steps=2, epochs=1, save_steps=1)
    whole, cut = make_context("whole"), make_context("cut")
    settings.train(whole, [P])
    score, calls = ScalarReward.__call__, []

    def dying(self: ScalarReward, prompts: Sequence[Any], texts: Sequence[str]) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, prompts, texts)

    monkeypatch.setattr(ScalarReward, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        settings.train(cut, [P])
    monkeypatch.setattr(ScalarReward, "__call__", score)
    settings.train(cut, [P])
    assert equal(weights(whole.point(P)), weights(cut.point(P)))
    first, second = (
        json.loads((context.point(P) / "training.json").read_text())["spend"]
        for context in (whole, cut)
    )
    for key in ("policy_tokens", "generated_tokens", "passes"):
        assert first[key] == second[key] > 0
    log = (whole.point(P) / "log.jsonl").read_text()
    assert "concise/score" in log


def test_an_objective_that_nothing_scores_is_named(make_context: Callable[..., Context]) -> None:
    sources = {"concise": RewardSource(scorer="demo")}
    with pytest.raises(InputError, match="Nothing scores the objective 'informative'"):
        options(rewards=sources).train(make_context(), [P])


def test_a_recipe_without_adapter_is_refused(make_context: Callable[..., Context]) -> None:
    with pytest.raises(InputError, match="give the recipe a 'lora' section"):
        options().train(make_context("run", "lora=null"), [P])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 6, "mini_batch_size": 4}, "batch_size 6 must be a multiple"),
        ({"backend": "rloo", "mini_batch_size": 1}, "must be even for rloo"),
        ({"backend": "rloo", "steps": None}, "rloo needs steps"),
        ({"backend": "rloo", "gae_lambda": 1.0}, "rloo has no use for gae_lambda"),
        ({"temperature": 0.0}, "greater than 0"),
        ({"cliprange": 0.2}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_fit_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        options(**wrong)
