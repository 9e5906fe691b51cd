"""One process of test_shard: trains on a base that is split over the processes."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from paretune import ClampConfig, ClampTrainer, ConditionedConfig, ConditionedTrainer
from paretune.evaluation.generation import generate
from paretune.models import load_model_and_tokenizer
from paretune.moo.weightings import MGDA, RACO, Linear
from paretune.training import MultiObjectiveConfig, MultiObjectiveTrainer

WEIGHTINGS: dict[str, Any] = {"pwg": Linear, "mgda": MGDA, "raco": RACO}
PROMPTS = [[{"role": "user", "content": text}] for text in ("who was it", "yes please cat", "moon")]
LORA = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def fixtures() -> Any:
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("paretune_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(method: str, model_folder: str, folder: Path, stop: int) -> None:
    made = fixtures()
    model, tokenizer = load_model_and_tokenizer(model_folder, dtype="float32", shard=True)
    local = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters())
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4 // int(os.environ["WORLD_SIZE"]),
        "per_device_eval_batch_size": 3,
        "save_steps": 2,
        "disable_tqdm": True,
    }
    data, validation = made.make_pairs(n=16, weights=True), made.make_pairs(n=5, seed=2)
    trainer: Any
    torch.manual_seed(1)
    if method == "conditioned":
        trainer = ConditionedTrainer(
            model,
            ConditionedConfig(**settings),
            data,
            validation,
            processing_class=tokenizer,
            peft_config=LORA,
        )
    else:
        settings |= {"preference": {"one": 0.4, "two": 0.6}, "optim": "sgd"}
        model = get_peft_model(model, LORA)
    if method in WEIGHTINGS:
        trainer = MultiObjectiveTrainer(
            model,
            MultiObjectiveConfig(**settings),
            data,
            validation,
            processing_class=tokenizer,
            weighting=WEIGHTINGS[method](),
        )
    elif method != "conditioned":
        settings |= {"mu": 0.05} | {
            "clamp": {},
            "padded": {"packing": "off"},
            "cpo": {"loss": "cpo", "tokens_per_batch": 40},
            "per_objective": {"gradients": "per_objective"},
            "checkpointing": {"activation_checkpointing": True},
        }[method]
        trainer = ClampTrainer(
            model,
            ClampConfig(**settings),
            data,
            validation,
            processing_class=tokenizer,
        )
    if stop:
        trainer.add_callback(made_to_stop(stop))
    trainer.train(resume_from_checkpoint=True)
    values = [row["lambda/one"] for row in trainer.state.log_history if "lambda/one" in row]
    values += [trainer.evaluate()["eval_chebyshev"], local]
    (folder / f"values-{trainer.args.process_index}.json").write_text(json.dumps(values))
    if method == "conditioned":
        trainer.gated.set(np.array([0.4, 0.6]))
    answers = generate(trainer.model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=2)
    (folder / f"answers-{trainer.args.process_index}.json").write_text(json.dumps(answers))
    trainer.save_model(str(folder / "adapter"))


def made_to_stop(step: int) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), 9)

    return Stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    model_folder, folder, methods, stop = sys.argv[1:]
    for name in methods.split(","):
        train(name, model_folder, Path(folder) / name, int(stop))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
