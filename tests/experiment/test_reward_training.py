"""Training reward models: what is learnt, what is kept, what a kill leaves behind."""

import copy
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import get_peft_model
from safetensors.torch import load_file
from typer.testing import CliRunner

from paretune.baselines.sft import fine_tune
from paretune.cli import app
from paretune.data import PreferenceData, split_by_prompt
from paretune.data.messages import user
from paretune.data.tokenization import TokenSequence
from paretune.errors import InputError, TrainingStoppedError
from paretune.evaluation.scorers import pair_accuracy
from paretune.experiment.reward import train_reward
from paretune.experiment.reward_sources import build_scorers, load_trained
from paretune.experiment.setup import load_data, lora_config, trl_arguments
from paretune.models import load_model_and_tokenizer
from paretune.recipes import Recipe, load_recipe
from paretune.recipes.rewards import RewardSource
from paretune.runs.reward import run_rewards

pytestmark = pytest.mark.slow

WORDS = ["cat", "dog", "tea", "milk", "sun", "moon", "rain", "wind", "run", "walk"]


def rows(chosen: str, rejected: str, conversational: bool) -> list[dict[str, Any]]:
    """Pairs that one word tells apart, wherever it stands."""
    generator = torch.Generator().manual_seed(0)

    def text(word: str = "") -> str:
        picks = [WORDS[i] for i in torch.randint(len(WORDS), (4,), generator=generator)]
        place = int(torch.randint(5, (1,), generator=generator))
        return " ".join([*picks[:place], word, *picks[place:]]).replace("  ", " ").strip()

    made = []
    for _ in range(60):
        prompt, good, bad = text(), text(chosen), text(rejected)
        if conversational:
            made.append(
                {
                    "prompt": user(prompt),
                    "chosen": [{"role": "assistant", "content": good}],
                    "rejected": [{"role": "assistant", "content": bad}],
                }
            )
        else:
            made.append({"prompt": f"{prompt} ", "chosen": good, "rejected": bad})
    return made


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, lasting_llama: Any) -> Path:
    """A folder with a random language model, two separable objectives and a recipe."""
    folder = tmp_path_factory.mktemp("toy")
    lasting_llama(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    ).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for kind in ("chat", "plain"):
        for name, words in (("kind", ("good", "bad")), ("cruel", ("bad", "good"))):
            lines = map(json.dumps, rows(*words, conversational=kind == "chat"))
            (folder / f"{kind}_{name}.jsonl").write_text("\n".join(lines))
    (folder / "toy.yaml").write_text(
        f"""
model: {{name: {folder / "model"}}}
lora: {{r: 8, alpha: 16, dropout: 0.1}}
data:
  loader: pairs
  path: {{kind: {folder / "chat_kind.jsonl"}, cruel: {folder / "chat_cruel.jsonl"}}}
  objectives: [kind, cruel]
  split: [0.6, 0.2, 0.2]
sweep: {{preferences: [[0.5, 0.5]]}}
reward:
  max_length: 40
  train:
    max_steps: 40
    per_device_train_batch_size: 12
    learning_rate: 3e-2
    lr_scheduler_type: constant
    save_steps: 10
    use_cpu: true
"""
    )
    return folder


@pytest.fixture
def recipe(toy: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def make(*overrides: str) -> Recipe:
        return load_recipe(toy / "toy.yaml", [f"output_dir={tmp_path / 'run'}", *overrides])

    return make


@pytest.fixture(scope="session")
def finished(toy: Path) -> Path:
    """The folder of reward models that nothing disturbed."""
    run_rewards(load_recipe(toy / "toy.yaml", [f"output_dir={toy / 'finished'}"]))
    return toy / "finished" / "rewards"


@pytest.fixture(scope="session")
def splits(toy: Path) -> Any:
    loaded = load_recipe(toy / "toy.yaml")
    return split_by_prompt(load_data(loaded.data), loaded.data.split)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_it_learns_what_separates_and_keeps_it(finished: Path, toy: Path) -> None:
    data = load_data(load_recipe(toy / "toy.yaml").data)
    scorers = build_scorers(
        {name: RewardSource(scorer="trained") for name in ("kind", "cruel")}, finished
    )
    for name in ("kind", "cruel"):
        assert sorted(path.name for path in (finished / name).iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "log.jsonl",
            "reward.json",
        ]
        record = json.loads((finished / name / "reward.json").read_text())
        assert record["accuracy"]["test"] >= 0.9, record
        assert (record["pairs"], record["dropped"], record["steps"]) == (36, 0, 40)
        assert record["tokens"] > 40 * 12 * 2 * 10
        assert record["normalisation"]["std"] > 0
        assert pair_accuracy(scorers[name], data.pairs[name]) >= 0.9
    # One model's taste is the other's distaste: what is scored is the word.
    assert pair_accuracy(scorers["kind"], data.pairs["cruel"]) <= 0.1
    assert scorers["kind"].name == "kind"


def test_finished_ones_are_left_alone(finished: Path, toy: Path, recipe: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    run_rewards(load_recipe(toy / "toy.yaml", [f"output_dir={finished.parent}"]))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    # One of two is missing: the other stays, and the missing one comes out the same.
    copy = Path(recipe().output_dir) / "rewards"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "cruel")
    stamp = (copy / "kind" / "reward.json").stat().st_mtime_ns
    run_rewards(recipe())
    assert (copy / "kind" / "reward.json").stat().st_mtime_ns == stamp
    assert weights(copy / "cruel") == weights(finished / "cruel")
    assert weights(copy / "kind") != weights(copy / "cruel")


@pytest.mark.parametrize("step", [10, 25, 40])
def test_a_killed_training_goes_on(
    finished: Path,
    toy: Path,
    splits: Any,
    step: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from paretune.experiment.train_point import StepReport

    class Killed(BaseException):
        pass

    def kill(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == step:
            raise Killed

    # At the last step the checkpoint is there already: the kill comes before the weights are kept.
    event = "on_train_end" if step == 40 else "on_step_end"
    loaded = load_recipe(toy / "toy.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(StepReport, event, kill)
        with pytest.raises(Killed):
            train_reward(loaded, "kind", splits, tmp_path)
    assert not (tmp_path / "reward.json").exists()
    record = train_reward(loaded, "kind", splits, tmp_path)
    assert weights(tmp_path) == weights(finished / "kind")
    whole = json.loads((finished / "kind" / "reward.json").read_text())
    assert record.pop("seconds") > 0
    whole.pop("seconds")
    assert whole["model"].pop("date")  # the command says which day it is
    assert record["model"].pop("date") is None
    assert record == whole


@pytest.mark.parametrize("kind", ["reward", "sft"])
def test_activations_made_again_change_nothing(
    kind: str,
    recipe: Callable[..., Recipe],
    splits: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`train.activation_checkpointing` holds for TRL's trainers, too."""
    step, seen = transformers.Trainer.training_step, set[bool]()

    def noted(self: Any, model: Any, *args: Any, **more: Any) -> Any:
        seen.add(any(getattr(each, "gradient_checkpointing", False) for each in model.modules()))
        return step(self, model, *args, **more)

    monkeypatch.setattr(transformers.Trainer, "training_step", noted)
    found = []
    for again in ("false", "true"):
        loaded = recipe(f"train.activation_checkpointing={again}", "reward.train.max_steps=4")
        folder = tmp_path / again
        if kind == "reward":
            train_reward(loaded, "kind", splits, folder)
        else:
            fine_tuned(loaded, folder)
        assert seen == {again == "true"}
        seen.clear()
        found.append(load_file(folder / "adapter_model.safetensors"))
    for name, kept in found[0].items():
        torch.testing.assert_close(kept, found[1][name], rtol=0, atol=1e-6)


def fine_tuned(recipe: Recipe, folder: Path) -> None:
    """Four steps on two answers."""
    model, tokenizer = load_model_and_tokenizer(recipe.model.name)
    torch.manual_seed(0)
    model = get_peft_model(model, lora_config(recipe))
    fine_tune(
        model,
        tokenizer,
        [TokenSequence(tuple(range(5, 25)), 8), TokenSequence(tuple(range(30, 45)), 4)],
        folder / "checkpoints",
        steps=4,
        batch_size=2,
        learning_rate=1e-2,
        schedule="constant",
        save_steps=4,
        seed=0,
        report=lambda phase, done: None,
        arguments={**trl_arguments(recipe), "use_cpu": True},
    )
    model.save_pretrained(folder)


def test_a_checkpoint_of_another_training_is_refused(
    toy: Path, splits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paretune.experiment.train_point import StepReport

    class Killed(BaseException):
        pass

    def kill(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        raise Killed

    few = ("reward.train.max_steps=4", "reward.train.save_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(StepReport, "on_train_end", kill)
        with pytest.raises(Killed):
            train_reward(load_recipe(toy / "toy.yaml", few), "kind", splits, tmp_path)
    for change, what in (
        ("reward.train.learning_rate=1e-3", "arguments.learning_rate was 0.03 and is 0.001"),
        ("reward.train.weight_decay=0.1", "arguments.weight_decay was"),
        ("lora.r=4", "adapter.default.r was 8 and is 4"),
    ):
        with pytest.raises(InputError, match=re.escape(f"is of another training: {what}")):
            train_reward(load_recipe(toy / "toy.yaml", [*few, change]), "kind", splits, tmp_path)
    loaded = load_recipe(toy / "toy.yaml", few)
    others = split_by_prompt(load_data(loaded.data), loaded.data.split, 1)
    with pytest.raises(InputError, match="is of another training: training data was"):
        train_reward(loaded, "kind", others, tmp_path)
    (model,) = (tmp_path / "checkpoints" / "checkpoint-4").glob("adapter_model.safetensors")
    model.write_bytes(b"")
    record = train_reward(load_recipe(toy / "toy.yaml", few), "kind", splits, tmp_path)
    assert record["steps"] == 4


def test_a_training_that_changes_nothing_is_an_error(
    toy: Path, splits: Any, tmp_path: Path
) -> None:
    few = ("reward.train.max_steps=2", "reward.train.learning_rate=1e-60")
    with pytest.raises(TrainingStoppedError, match="No weight changed in 2 steps"):
        train_reward(load_recipe(toy / "toy.yaml", few), "kind", splits, tmp_path)
    few = ("reward.train.max_steps=3", "reward.train.learning_rate=1e38")
    with pytest.raises(TrainingStoppedError, match="a weight is NaN or infinite"):
        train_reward(load_recipe(toy / "toy.yaml", few), "kind", splits, tmp_path / "other")


def test_another_seed_is_another_model(toy: Path, splits: Any, tmp_path: Path) -> None:
    for seed in (0, 1):
        few = "reward.train={max_steps: 1, learning_rate: 1e-9, use_cpu: true}"
        loaded = load_recipe(toy / "toy.yaml", [few, f"reward.seed={seed}"])
        record = train_reward(loaded, "kind", splits, tmp_path / str(seed))
        assert record["accuracy"]["test"] < 0.9  # nothing was learnt
    assert weights(tmp_path / "0") != weights(tmp_path / "1")


def test_plain_text_and_all_weights(recipe: Callable[..., Recipe], toy: Path) -> None:
    loaded = recipe(
        f"data.path={{kind: {toy / 'plain_kind.jsonl'}, cruel: {toy / 'plain_cruel.jsonl'}}}",
        "lora=null",
        "reward.train.learning_rate=1e-2",
        "reward.train.eval_strategy=steps",
        "reward.train.eval_steps=20",
    )
    records = run_rewards(loaded)
    assert records["kind"]["accuracy"]["test"] >= 0.9
    assert records["kind"]["input"]["kind"] == "text"
    folder = Path(loaded.output_dir) / "rewards" / "kind"
    assert (folder / "model.safetensors").exists()
    assert "eval_loss" in (folder / "log.jsonl").read_text()
    data = load_data(loaded.data)
    assert pair_accuracy(load_trained(folder), data.pairs["kind"]) >= 0.9


def test_all_weights_of_a_model_without_a_template(
    toy: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Conversations, for which it gets a plain dialogue; of a recipe for 8-bit adapters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    bare = copy.deepcopy(tokenizer)
    bare.chat_template, bare.pad_token = None, bare.eos_token
    bare.save_pretrained(tmp_path / "gpt2")
    config = GPT2Config(vocab_size=len(bare), n_positions=64, n_embd=16, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = bare.eos_token_id
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    text = (toy / "toy.yaml").read_text()
    text = text.replace(f"{toy / 'model'}}}", f"{toy / 'model'}, quantization: 8bit}}")
    (tmp_path / "toy.yaml").write_text(text)
    assert "8bit" in text
    overrides = [
        f"reward.model={tmp_path / 'gpt2'}",
        "lora=null",
        "reward.train.learning_rate=1e-2",
    ]
    command = ["reward", "train", str(tmp_path / "toy.yaml"), f"output_dir={tmp_path / 'run'}"]
    done = CliRunner().invoke(app, [*command, *overrides])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "run" / "rewards" / "kind"
    record = json.loads((folder / "reward.json").read_text())
    assert record["input"]["template"] == "{prompt}\n\nAssistant: {response}{eos}"
    assert record["model"]["quantization"] is None
    assert record["accuracy"]["test"] >= 0.9
    assert (folder / "model.safetensors").exists()
    data = load_data(load_recipe(toy / "toy.yaml").data)
    assert pair_accuracy(load_trained(folder), data.pairs["kind"]) >= 0.9
    with pytest.raises(InputError, match="needs lora"):
        load_recipe(tmp_path / "toy.yaml", overrides)


def test_overlong_pairs_are_dropped_and_counted(toy: Path, splits: Any, tmp_path: Path) -> None:
    few = "reward.train={max_steps: 1, use_cpu: true}"
    train = splits["train"].pairs["kind"]
    longer = {**train[0], "chosen": [{"role": "assistant", "content": "cat " * 60}]}
    changed = PreferenceData({"kind": Dataset.from_list([*train, longer])}, {})
    loaded = load_recipe(toy / "toy.yaml", [few])
    record = train_reward(loaded, "kind", {**splits, "train": changed}, tmp_path)
    assert (record["pairs"], record["dropped"]) == (36, 1)
    with pytest.raises(InputError, match="All 36 pairs of objective 'kind' are longer than"):
        train_reward(load_recipe(toy / "toy.yaml", ["reward.max_length=8"]), "kind", splits, toy)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("reward.train={max_stepz: 4}", "'reward.train.max_stepz'.*'reward.train.max_steps'"),
        ("reward.train={max_length: 4}", "'reward.max_length'"),
        ("reward.train={seed: 4}", "'reward.seed'"),
        ("reward.train={max_steps: many}", "'reward.train.max_steps' is 'many'"),
        ("reward.train={lr_scheduler_type: wavy}", "reward.train"),
        ("reward.model=/absent/model", "'/absent/model' does not exist"),
    ],
)
def test_mistakes_are_one_sentence(
    recipe: Callable[..., Recipe], override: str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        run_rewards(recipe(override))
    assert "\n" not in str(caught.value)


def test_other_settings_are_refused(finished: Path, recipe: Callable[..., Recipe]) -> None:
    folder = Path(recipe().output_dir) / "rewards"
    shutil.copytree(finished, folder)
    with pytest.raises(InputError, match=r"other settings \(reward.seed: 3, not 0\).*--fresh"):
        run_rewards(recipe("reward.seed=3"))
    assert (folder / "kind").exists()
    with pytest.raises(InputError, match="does not exist"):
        run_rewards(recipe("reward.model=/absent/model"), fresh=True)
    assert (folder / "kind" / "reward.json").exists()  # nothing goes before all is checked


def test_sources(finished: Path, tmp_path: Path) -> None:
    scorer = build_scorers({"short": RewardSource(scorer="demo", name="concise")})["short"]
    assert scorer.score(["why"], ["a b c"]) == [-3.0]
    named = RewardSource(scorer="trained", name=str(finished))
    assert build_scorers({"kind": named})["kind"].score(["cat"], ["good"])
    with pytest.raises(InputError, match="needs name"):
        build_scorers({"kind": RewardSource(scorer="trained")})
    with pytest.raises(InputError, match="no finished reward model"):
        build_scorers({"kind": RewardSource(scorer="trained")}, tmp_path)


def test_objectives_share_a_model(tokenizer: Any, tmp_path: Path, tiny_llama: Any) -> None:
    tiny_llama(num_labels=3).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model: Any = {"scorer": "model", "name": str(tmp_path)}
    made: Any = build_scorers(
        {"a": RewardSource(label=0, **model), "b": RewardSource(label=2, **model)}
    )
    assert made["a"].model is made["b"].model
    assert made["a"].score(["cat"], ["dog"]) != made["b"].score(["cat"], ["dog"])


def test_a_source_has_the_options_of_its_kind() -> None:
    with pytest.raises(ValueError, match="needs name"):
        RewardSource(scorer="model")
    with pytest.raises(ValueError, match="'demo' has no option 'label'"):
        RewardSource(scorer="demo", label=1)
    RewardSource(scorer="trained", batch_size=4)
    source = RewardSource(scorer="demo")
    assert RewardSource(**source.model_dump()) == source


def test_the_command(finished: Path, toy: Path) -> None:
    command = ["reward", "train", str(toy / "toy.yaml"), f"output_dir={finished.parent}"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    accuracy = json.loads((finished / "kind" / "reward.json").read_text())["accuracy"]["test"]
    assert f"{accuracy:.1%}" in done.output
    with pytest.raises(InputError, match=r"did you mean 'reward\.seed'"):
        CliRunner().invoke(app, [*command, "reward.sed=1"], catch_exceptions=False)


def test_trl_is_imported_when_it_is_needed() -> None:
    code = (
        "import sys; import paretune.runs.reward, paretune.cli; "
        "assert not {'torch', 'trl', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
