"""One process of test_distributed: trains tiny models, writes λ* of each step and the adapter."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from paretune import ClampConfig, ClampTrainer


def fixtures() -> Any:
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("paretune_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(method: str, folder: Path) -> None:
    made = fixtures()
    tokenizer = made.make_tokenizer()
    args = ClampConfig(
        output_dir=str(folder),
        preference={"one": 0.4, "two": 0.6},
        mu=1.0,
        gradients=method,  # type: ignore[arg-type]
        max_steps=4,
        learning_rate=1e-3,
        optim="sgd",  # Adam turns rounding into steps where a gradient is nearly zero
        lr_scheduler_type="constant",
        per_device_train_batch_size=4 // int(os.environ["WORLD_SIZE"]),
        gradient_accumulation_steps=2,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo",
    )
    trainer = ClampTrainer(
        made.make_lora(made.make_llama(tokenizer, 0), 0),
        args,
        made.make_pairs(n=16, weights=True),
        made.make_pairs(n=5, seed=2),
        processing_class=tokenizer,
    )
    trainer.train()
    validation = trainer.evaluate()
    history = trainer.state.log_history
    values = [row["lambda/one"] for row in history if "lambda/one" in row]
    values.append(validation["eval_chebyshev"])
    (folder / f"lambda-{args.process_index}.json").write_text(json.dumps(values))
    if args.process_index == 0:
        trainer.save_model(str(folder / "adapter"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for gradients in ("one_pass", "per_objective"):
        train(gradients, Path(sys.argv[1]) / gradients)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
