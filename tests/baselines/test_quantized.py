"""Adapters of quantised bases: in float32 whoever trains them, so that small updates arrive."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paretune.baselines.context import Context
from paretune.baselines.morlhf import Morlhf
from paretune.baselines.ric import Ric
from paretune.baselines.sft import fine_tune
from paretune.data.splitting import split_by_prompt
from paretune.data.tokenization import TokenSequence
from paretune.errors import InputError
from paretune.experiment.reward import train_reward
from paretune.experiment.setup import load_data, trl_arguments
from paretune.models import load_model_and_tokenizer
from paretune.moo.preference import Preference
from paretune.recipes.load import load_recipe
from paretune.training.checks import check_weights

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.slow

P = Preference.of({"concise": 0.5, "informative": 0.5})
KINDS = ["8bit", "4bit"]


@pytest.fixture
def base(tiny_llama: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    sizes = {"hidden_size": 64, "intermediate_size": 64}  # 4-bit weights stand in blocks of 64
    tiny_llama(initializer_range=0.3, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_context(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Context]:
    def make(kind: str) -> Context:
        if kind == "4bit":  # refused on a CPU, whose gradients are wrong; its types are not
            for module in ("baselines.rloo", "experiment.reward", "training.checks"):
                monkeypatch.setattr(f"paretune.{module}.check_weights", lambda model: None)
        recipe = load_recipe("demo_sweep", [f"model.name={base}", f"model.quantization={kind}"])
        splits = split_by_prompt(load_data(recipe.data), recipe.data.split)
        return Context(recipe, splits, 0, tmp_path / "run", tmp_path / "run" / "shared")

    return make


def types(folder: Path) -> set[torch.dtype]:
    found = [load_file(path) for path in folder.rglob("adapter_model.safetensors")]
    assert found
    return {tensor.dtype for tensors in found for tensor in tensors.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_update_reaches_every_weight(
    base: Path, tiny_lora: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    model, tokenizer = load_model_and_tokenizer(base, quantization=kind)  # type: ignore[arg-type]
    model = tiny_lora(base=model)
    if kind == "4bit":
        with pytest.raises(InputError, match="quantised to 4 bits and on a CPU"):
            check_weights(model)
    before = {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad}
    assert {weight.dtype for weight in before.values()} == {torch.float32}
    sequences = [TokenSequence(tuple(range(5, 25)), 8), TokenSequence(tuple(range(30, 45)), 4)]
    fine_tune(
        model,
        tokenizer,
        sequences,
        tmp_path / "checkpoints",
        steps=1,
        batch_size=2,
        learning_rate=1e-5,
        schedule="constant",
        save_steps=1,
        seed=0,
        report=lambda phase, done: None,
        arguments=trl_arguments(load_recipe("demo_sweep")),
    )
    moved = total = 0
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.dtype == torch.float32
            change = (weight.detach() - before[name]).abs()
            assert change.max() < 1.1e-5  # Adam's first step; nothing was rounded before it
            moved += int((change > 0).sum())
            total += change.numel()
    assert moved / total > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_reward_models(make_context: Callable[[str], Context], tmp_path: Path, kind: str) -> None:
    context = make_context(kind)
    train = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-5}
    reward = context.recipe.reward.model_copy(update={"train": train})
    recipe = context.recipe.model_copy(update={"reward": reward})
    splits = {name: data.__class__(**vars(data)) for name, data in context.splits.items()}
    train_reward(recipe, "concise", splits, tmp_path / "reward")
    assert types(tmp_path / "reward") == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_rloo(make_context: Callable[[str], Context], tmp_path: Path, kind: str) -> None:
    options = Morlhf(backend="rloo", steps=1, batch_size=4, mini_batch_size=4, max_new_tokens=4)
    options.train(make_context(kind), [P])
    assert types(tmp_path / "run") == {torch.float32}


def test_ric(
    make_context: Callable[[str], Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paretune.results.answers import Answer

    monkeypatch.setattr(
        "paretune.evaluation.generation.generate_answers",
        lambda model, tokenizer, prompts, **_: [Answer(p, "walk and rest", True) for p in prompts],
    )
    small = {"batch_size": 2, "offline_steps": 2, "online_steps": 2, "online_prompts": 4}
    Ric(**small, offline_mixed=4).train(make_context("8bit"), [P])  # type: ignore[arg-type]
    assert types(tmp_path / "run") == {torch.float32}
