"""On the embedded SmolLM2-135M and the demo's own data: from pairs to an adapter that answers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from paretune import ClampConfig, ClampTrainer
from paretune.data import demo, split_by_prompt
from paretune.evaluation.generation import generate
from paretune.gradients import ObjectiveGradients
from paretune.models import EMBEDDED, load_model_and_tokenizer

pytestmark = pytest.mark.model

LORA = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def first(pairs: dict[str, Any], prompts: int) -> dict[str, Any]:
    """The pairs of the first few prompts, of both objectives."""
    wanted = list(dict.fromkeys(row["prompt"][-1]["content"] for row in pairs["concise"]))[:prompts]
    return {
        name: [row for row in rows if row["prompt"][-1]["content"] in wanted]
        for name, rows in pairs.items()
    }


def test_clamp_on_the_embedded_model(tmp_path: Path) -> None:
    splits = split_by_prompt(demo.load(objectives=["concise", "informative"]))
    model, tokenizer = load_model_and_tokenizer(EMBEDDED)
    args = ClampConfig(
        output_dir=str(tmp_path / "run"),
        preference={"concise": 0.9, "informative": 0.1},
        max_steps=3,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=2,
        max_length=96,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    train = first(splits["train"].pairs, 4)
    trainer = ClampTrainer(model, args, train, train, tokenizer, LORA)
    assert trainer.engine.method == "one_pass"

    before = trainer.evaluate()
    assert before["eval_concise_loss"] == pytest.approx(math.log(2), abs=1e-5)
    trainer.train()
    log = [row for row in trainer.state.log_history if "learning_rate" in row]
    assert log[0]["concise/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert all(row["clamp/gap"] < 1e-9 for row in log)
    assert trainer.evaluate()["eval_concise_loss"] < 0.95 * before["eval_concise_loss"]

    # On the trained adapter, where no gradient vanishes.
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    found = {}
    for method in ("one_pass", "per_objective"):
        engine = ObjectiveGradients(trainer.model, trainer.losses, method)  # type: ignore[arg-type]
        engine.accumulate(batch)
        found[method] = torch.cat([block.reshape(2, -1) for block in engine.bank.blocks], 1)
    one, separate = found.values()
    assert float((one - separate).norm() / separate.norm()) < 1e-5

    trainer.model.save_pretrained(tmp_path / "adapter")
    answers = {}
    prompt = demo.as_messages("How do I boil an egg?")
    base, _ = load_model_and_tokenizer(EMBEDDED)
    for name, policy in (
        ("base", base),
        ("tuned", trainer.model),
        ("loaded", PeftModel.from_pretrained(base, tmp_path / "adapter")),
    ):
        (answers[name],) = generate(policy, tokenizer, [prompt], max_new_tokens=16, temperature=0)
    assert answers["loaded"] == answers["tuned"]
    assert all(answers.values())
