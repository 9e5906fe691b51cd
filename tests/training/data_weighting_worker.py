"""One process of test_two_processes_equal_one: trains a tiny model, writes where it ends."""

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from paretune import DataWeightingConfig, DataWeightingTrainer
from paretune.moo.bilevel.oracle import NonConvexLowerLevelWarning


def load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(folder: Path, method: Any) -> None:
    here = Path(__file__).parent
    made = load("paretune_conftest", here.parent / "conftest.py")
    rows = load("paretune_rows", here / "test_data_weighting.py")
    tokenizer = made.make_tokenizer()
    args = DataWeightingConfig(
        output_dir=str(folder),
        preference={"one": 0.4, "two": 0.6},
        method=method,
        v=1.0,
        x_learning_rate=0.01,
        max_steps=2,
        learning_rate=0.05,
        optim="sgd",  # Adam turns rounding into steps where a gradient is nearly zero
        lr_scheduler_type="constant",
        per_device_train_batch_size=2 // int(os.environ["WORLD_SIZE"]),
        gradient_accumulation_steps=2,
        save_strategy="no",
        **({} if method == "lookahead" else {"u": 0.5}),
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo",
    )
    trainer = DataWeightingTrainer(
        made.make_lora(made.make_llama(tokenizer, 0), 0),
        args,
        rows.SETS,
        rows.CRITERIA,
        processing_class=tokenizer,
    )
    trainer.train()
    state = trainer.state_dict()
    omega = state["w0"] if method == "lookahead" else state["multipliers"]["w0"]
    report = trainer.polish(steps=1)
    end = [*trainer.x.tolist(), *omega, *trainer.evaluate().values()]
    end += [report.lower_gradient_norm_before, *report.losses.values()]
    (folder / f"end-{args.process_index}.json").write_text(json.dumps(end))
    if args.process_index == 0:
        trainer.save_model(str(folder / "adapter"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", NonConvexLowerLevelWarning)
    for method in ("lookahead", "wc_augmented"):
        train(Path(sys.argv[1], method), method)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
