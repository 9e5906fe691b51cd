"""A reward model with ten outputs and code of its own, as Task 2 of the CLAMP paper takes one.

It is a tiny stand-in, made here: a Mistral with a score head, its class in the checkpoint.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForSequenceClassification

from paretune.errors import InputError
from paretune.evaluation.reward_models import RewardInput, RewardModelScorer, load_reward_model
from paretune.experiment.reward_sources import build_scorers
from paretune.models import TRUST_VARIABLE
from paretune.recipes.rewards import RewardSource

CODE = """
import torch
from transformers import MistralForSequenceClassification


class TenScores(MistralForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        if config.shifted:
            self.score = torch.nn.Linear(config.hidden_size, config.num_labels, bias=True)
            self.post_init()
"""
FOR_TRANSFORMERS_4 = CODE.replace(
    "import torch\n",
    "import torch\nfrom transformers.models.mistral.modeling_mistral import "
    "MISTRAL_INPUTS_DOCSTRING\n",
)
TEMPLATE = "rate {prompt} | {response}"
TURNS = {"user": " user {content}", "assistant": " assistant {content}"}
PROMPTS = ["how can we make bread", "what is the moon"]
RESPONSES = ["fish and salt", "a slow red bird and a small warm cat"]


def checkpoint(folder: Path, tokenizer: Any, code: str = CODE, shift: float | None = None) -> Path:
    """A model of ten outputs whose code is in its folder; with `shift`, its head has a bias."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_labels=10,
        pad_token_id=None,
    )
    model = MistralForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight)
    if shift is not None:
        head = torch.nn.Linear(16, 10)
        torch.nn.init.constant_(head.bias, shift)
        head.weight = model.score.weight
        model.score = head
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "modeling_ten.py").write_text(code)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForSequenceClassification": "modeling_ten.TenScores"}
    settings["shifted"] = shift is not None
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))


def scores(model: Any, tokenizer: Any, label: int) -> list[float]:
    form = RewardInput("text", TEMPLATE, TURNS)
    scorer = RewardModelScorer(model, tokenizer, name="ten", input=form, label=label)
    return scorer.score(PROMPTS, RESPONSES)


def test_its_own_code_scores(trusted: None, tokenizer: Any, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "ten", tokenizer, shift=3.0)
    model, own = load_reward_model(folder, trust_remote_code=True)
    assert type(model).__name__ == "TenScores"
    for label in (8, 9):
        got = scores(model, own, label)
        for prompt, response, score in zip(PROMPTS, RESPONSES, got, strict=True):
            ids = own(f"rate  user {prompt} | {response}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                last = model.model(ids).last_hidden_state[0, -1]
            assert score == pytest.approx((last @ model.score.weight[label]).item() + 3, abs=1e-5)


def test_objectives_share_it_as_the_recipes_name_them(
    trusted: None, tokenizer: Any, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "ten", tokenizer)
    source = {"scorer": "model", "name": str(folder), "input": "text", "template": TEMPLATE}
    sources = {
        name: RewardSource(**source, turns=TURNS, label=label, trust_remote_code=True)
        for name, label in (("honesty", 8), ("helpfulness", 9), ("instruction_following", 6))
    }
    found = build_scorers(sources)
    values = {name: scorer.score(PROMPTS, RESPONSES) for name, scorer in found.items()}
    plain = load_reward_model(folder)  # transformers' own class: the same architecture
    assert type(plain[0]) is MistralForSequenceClassification
    assert values["helpfulness"] == pytest.approx(scores(*plain, 9), abs=1e-6)
    assert len({tuple(each) for each in values.values()}) == 3


def test_code_for_another_transformers(trusted: None, tokenizer: Any, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "old", tokenizer, FOR_TRANSFORMERS_4)
    with pytest.raises(InputError, match=r"does not run with transformers 5.*set trust_remote_co"):
        load_reward_model(folder, trust_remote_code=True)
    assert len(scores(*load_reward_model(folder), 0)) == 2


def test_weights_that_only_its_code_reads(tokenizer: Any, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "ten", tokenizer, shift=3.0)
    with pytest.raises(InputError, match=r"score\.bias.*set trust_remote_code to true"):
        load_reward_model(folder)


def test_nobody_allowed_it(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--trust-remote-code"):
        load_reward_model(checkpoint(tmp_path / "ten", tokenizer), trust_remote_code=True)
