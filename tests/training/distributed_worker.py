"""One process of test_distributed: trains tiny models, writes λ* of each step and the adapter."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from paretune import ClampConfig, ClampTrainer, ConditionedConfig, ConditionedTrainer


def fixtures() -> Any:
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("paretune_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(method: str, folder: Path) -> None:
    """Train by CLAMP with gradients of a kind, or a conditioned adapter with CLAMP inside."""
    made = fixtures()
    tokenizer = made.make_tokenizer()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 4,
        "learning_rate": 1e-3,
        "optim": "sgd",  # Adam turns rounding into steps where a gradient is nearly zero
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4 // int(os.environ["WORLD_SIZE"]),
        "gradient_accumulation_steps": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "ddp_backend": "gloo",
    }
    llama, data = made.make_llama(tokenizer, 0), made.make_pairs(n=16, weights=True)
    validation = made.make_pairs(n=5, seed=2)
    trainer: Any
    if method in ("pwg", "clamp"):
        settings |= {"inner": method, "preference_groups": 3, "tokens_per_batch": 40}
        trainer = ConditionedTrainer(
            llama,
            ConditionedConfig(**settings),
            data,
            validation,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    else:
        settings |= {"preference": {"one": 0.4, "two": 0.6}, "mu": 1.0}
        settings |= {"tokens_per_batch": 40} if method == "parts" else {"gradients": method}
        full = method == "layerwise"
        if full:
            settings["gradient_accumulation_steps"] = 1
        trainer = ClampTrainer(
            llama if full else made.make_lora(llama, 0),
            ClampConfig(**settings),
            data,
            validation,
            processing_class=tokenizer,
        )
    trainer.train()
    measured = trainer.evaluate()
    history = trainer.state.log_history
    values = [row["lambda/one"] for row in history if "lambda/one" in row]
    values.append(measured["eval_chebyshev"])
    (folder / f"lambda-{trainer.args.process_index}.json").write_text(json.dumps(values))
    if trainer.args.process_index == 0:
        trainer.save_model(str(folder / "adapter"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in ("one_pass", "per_objective", "parts", "layerwise", "pwg", "clamp"):
        train(name, Path(sys.argv[1]) / name)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
