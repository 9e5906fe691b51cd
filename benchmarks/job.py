"""The whole job of a user, cold: a front of three points, trained, evaluated and with answers.

    python benchmarks/job.py                     # all of it: half an hour and more for TRL
    python benchmarks/job.py --scale 0.25        # a quarter of steps, data and answers

Contenders are `paretune sweep demo_sweep` (CLAMP, a training for each point), the demo's own recipe
(`dial`: one conditioned training for its three points), and TRL's `DPOTrainer` once for
each point: on the union of both objectives' pairs, with the same model, adapter, learning rate,
steps, sequences a step, batches of evaluation, checkpoints and greedy answers to the same prompts,
its reference computed once and read from its cache by the later points. TRL has no weights for
objectives, so its three trainings differ in nothing; what they cost is the same.

Each contender runs in a process of its own with an empty cache (the embedded model, dequantised, is
in it), in turn over the repeats. Seconds are those of the CPU, imports included, on one thread.
`pip install paretune[bench]` for TRL; without it the others are measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONTENDERS = ("paretune", "dial", "trl")


def settings(name: str, scale: float, folder: Path) -> Any:
    """The recipe of a contender."""
    from paretune.recipes import load_recipe

    prompts = round(36 * scale)
    steps = round((16 if name == "dial" else 12) * scale)
    overrides = [
        f"evaluation.n_prompts={prompts}",
        f"evaluation.batch_size={prompts}",
        f"train.max_steps={steps}",
        f"output_dir={folder / 'run'}",
    ]
    return load_recipe("demo" if name == "dial" else "demo_sweep", overrides)


def shorten(scale: float) -> None:
    """Leave the demo's data so many of its questions, with their answers."""
    from paretune.data import demo

    read = demo.read_objects

    def some(path: Any) -> list[dict[str, Any]]:
        answers = read(path)
        questions = list(dict.fromkeys(answer["prompt"] for answer in answers))
        kept = set(questions[: round(len(questions) * scale)])
        return [answer for answer in answers if answer["prompt"] in kept]

    demo.read_objects = some


def sweep(recipe: Any) -> None:
    from paretune.runs.sweep import run_sweep

    front = run_sweep(recipe)
    assert len(front.points) == 3


def dpo(recipe: Any, folder: Path) -> None:
    """TRL's way to three points."""
    import torch
    from datasets import Dataset, disable_progress_bars
    from trl import DPOConfig, DPOTrainer

    from paretune.data.splitting import split_by_prompt
    from paretune.experiment.setup import load_data, lora_config
    from paretune.models import load_model_and_tokenizer

    disable_progress_bars()
    data = load_data(recipe.data)
    splits = split_by_prompt(data, recipe.data.split, recipe.data.seed)
    union = {
        split: Dataset.from_list(
            [
                {key: row[key] for key in ("prompt", "chosen", "rejected")}
                for pairs in splits[split].pairs.values()
                for row in pairs
            ]
        )
        for split in ("train", "test")
    }
    asked: list[Any] = []
    for row in union["test"]:
        if row["prompt"] not in asked:
            asked.append(row["prompt"])
    asked = asked[: recipe.evaluation.n_prompts]
    kept = ("max_steps", "per_device_train_batch_size", "per_device_eval_batch_size")
    kept += ("learning_rate", "lr_scheduler_type", "max_length", "save_steps")
    for number, _ in enumerate(recipe.points):
        model, tokenizer = load_model_and_tokenizer(**recipe.model.model_dump())
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=str(folder / f"point-{number}"),
                **{name: recipe.train[name] for name in kept},
                beta=recipe.loss.beta,
                precompute_ref_log_probs=True,
                precompute_ref_batch_size=recipe.train["per_device_eval_batch_size"],
                save_total_limit=2,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=union["train"],
            eval_dataset=union["test"],
            processing_class=tokenizer,
            peft_config=lora_config(recipe),
        )
        trainer.train()
        measured = trainer.evaluate()
        assert "eval_loss" in measured
        trainer.save_model(str(folder / f"point-{number}" / "adapter"))
        policy: Any = trainer.model
        policy.eval()
        tokenizer.padding_side = "left"
        inputs = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            made = policy.generate(
                **inputs, max_new_tokens=recipe.evaluation.max_new_tokens, do_sample=False
            )
        answers = tokenizer.batch_decode(
            made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert len(answers) == len(asked)


def child(name: str, scale: float, folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    shorten(scale)
    recipe = settings(name, scale, folder)
    if name == "trl":
        dpo(recipe, folder)
    else:
        sweep(recipe)


def measure(name: str, scale: float) -> dict[str, float]:
    """CPU and wall seconds of a contender in a process of its own, with an empty cache."""
    from paretune.models import embedded_folder

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        own = embedded_folder()
        linked = folder / "cache" / "paretune" / own.parent.name / own.name
        linked.parent.mkdir(parents=True)
        linked.symlink_to(own)
        environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, __file__, "--child", name, "--scale", str(scale)]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [*command, "--folder", place], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"cpu": used, "wall": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="part of steps, data, prompts")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--output", type=Path, help="also write all figures as JSON")
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.scale, args.folder)
        return
    names = [n for n in args.contenders if n != "trl" or importlib.util.find_spec("trl")]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.repeats):
        for name in names:
            found[name].append(measure(name, args.scale))
            load = os.getloadavg()[0]
            print(f"{name}: {found[name][-1]['cpu']:.0f} s of CPU, load {load:.1f}", flush=True)
    medians = {name: statistics.median(run["cpu"] for run in runs) for name, runs in found.items()}
    print(f"\n| job, {args.scale:g} of the demo's | CPU s | min to max | / TRL |")
    print("|---|---:|---:|---:|")
    for name, runs in found.items():
        every = [run["cpu"] for run in runs]
        part = f"{medians[name] / medians['trl']:.2f}" if "trl" in medians else ""
        print(f"| {name} | {medians[name]:.0f} | {min(every):.0f} to {max(every):.0f} | {part} |")
    if args.output:
        args.output.write_text(json.dumps({"scale": args.scale, "runs": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
