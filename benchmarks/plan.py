"""`paretune plan` on paper: its memory against what is measured, and the table of docs/scaling.md.

    python benchmarks/plan.py              # five trainings on the CPU, a minute or two each
    python benchmarks/plan.py --table      # 1B, 8B and 70B bases; nothing is run

Measured is the peak resident memory of two optimiser steps above what the process holds with all
libraries imported and the data read, in a process for each training; Linux only. A loss without a
reference, so that nothing is scored first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = {
    "M = 2, 4 rows": ("demo", "train.per_device_train_batch_size=4"),
    "M = 3, 8 rows": (
        "demo_objectives",
        "sweep.preferences=[[0.34, 0.33, 0.33]]",
        "train.per_device_train_batch_size=8",
    ),
    "M = 2, 8 rows, checkpointing": (
        "demo",
        "train.per_device_train_batch_size=8",
        "train.activation_checkpointing=true",
    ),
    "steerable, M = 2, 4 rows": (
        "demo",
        "train.per_device_train_batch_size=4",
        "method={name: conditioned}",
    ),
    "steerable, inner: clamp, M = 3, 8 rows": (
        "demo_objectives",
        "sweep.preferences=[[0.34, 0.33, 0.33]]",
        "train.per_device_train_batch_size=8",
        "method={name: conditioned, inner: clamp}",
    ),
}
HIGH_WATER = Path("/proc/self/clear_refs")  # resets VmHWM when "5" is written to it

# Of the times in the table: 500 steps of 16 rows, on an H100 that sustains 40 % of its bf16 rate.
ROWS, STEPS, FLOPS, GPUS = 16, 500, 4e14, 8
ROOM = 72e9  # bytes of an 80 GB GPU, without the CUDA context and the allocator's slack

BASES = {
    "1B": "meta-llama/Llama-3.2-1B-Instruct",
    "8B": "meta-llama/Llama-3.1-8B-Instruct",
    "70B": "meta-llama/Llama-3.1-70B-Instruct",
}


def load(case: str) -> tuple[str, list[str]]:
    name, *overrides = CASES[case]
    quick = ["loss={name: simpo, beta: 2.0, gamma: 1.0}", "train.max_steps=2"]
    return name, ["method={name: clamp}", *overrides, *quick, "train.save_strategy=no"]


def make_trainer(recipe, splits, folder: Path):  # type: ignore[no-untyped-def]
    from paretune.baselines.conditioned import Conditioned
    from paretune.experiment import setup
    from paretune.recipes.dial import ConditionedOptions
    from paretune.training import ConditionedTrainer

    if not isinstance(recipe.method, ConditionedOptions):
        return setup.build_trainer(recipe, recipe.points[-1], 0, splits, folder)
    args = Conditioned(**dict(recipe.method)).training_arguments(recipe, 0, folder)
    return setup.make_trainer(recipe, args, splits, make=ConditionedTrainer)


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(case: str) -> None:
    """Print the peak in bytes of one training in this process."""
    import torch

    from paretune.data.splitting import split_by_prompt
    from paretune.experiment.setup import load_data
    from paretune.recipes import load_recipe

    torch.set_num_threads(1)
    name, overrides = load(case)
    recipe = load_recipe(name, overrides)
    import peft  # noqa: F401  so that the baseline has it

    splits = split_by_prompt(load_data(recipe.data), recipe.data.split, recipe.data.seed)
    before = status("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(recipe, splits, Path(folder))
        HIGH_WATER.write_text("5")
        trainer.train()
    print(status("VmHWM") - before)


def compare(case: str) -> str:
    """One row of the table: estimate, measurement, and their quotient."""
    from paretune.runs.needs import needs

    memory = needs(*load(case)).work[0].memory
    assert memory is not None
    eager = {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, __file__, "--measure", case]
    result = subprocess.run(
        command, env={**os.environ, **eager}, stdout=subprocess.PIPE, text=True, check=True
    )
    measured = int(result.stdout.split()[-1])
    parts = " + ".join(f"{value / 1e6:.0f}" for value in vars(memory).values())
    return (
        f"| {case} | {memory.total / 1e6:.0f} | {measured / 1e6:.0f} "
        f"| {memory.total / measured:.2f} | {parts} |"
    )


def paper() -> None:
    """Print the tables of bases that were not run: memory, and points a day."""
    from paretune.experiment.forecast import Precision, memory, shape_of, token_flops
    from paretune.recipes.schema import Lora, Model

    print("| base | M | bank | bf16 | 8-bit | 4-bit | bf16, / 8 GPUs |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    times = []
    for name, model in BASES.items():
        shape = shape_of(Model(name=model), Lora(r=8))
        for objectives in (2, 3, 5):
            tokens = 2 * objectives * 512  # one row of independent pairs, 512 tokens a side
            found = {
                kind: memory(
                    shape,
                    Precision.of(Model(name=model, dtype="bfloat16", quantization=kind)),
                    objectives,
                    tokens,
                    checkpointing=True,
                )
                for kind in (None, "8bit", "4bit")
            }
            cells = [f"{each.total / 1e9:.1f}" for each in found.values()]
            sharded = f"{found[None].sharded(8) / 1e9:.1f}"
            bank = f"{found[None].bank / 1e9:.2f}"
            print(f"| {name} | {objectives} | {bank} | {' | '.join(cells)} | {sharded} |")
            ranks = next(n for n in (1, 2, 4, 8) if found[None].sharded(n) < ROOM)
            step = ROWS * tokens * token_flops(shape, checkpointing=True) / FLOPS  # of one GPU
            hours = STEPS * step / 3600
            times.append(
                f"| {name} | {objectives} | {ROWS * tokens:,} | {ranks} | {step / ranks:.2f} "
                f"| {hours / ranks:.2f} | {24 * GPUS / hours:,.0f} |"
            )
    print("\n| base | M | tokens a step | GPUs a point | s a step | hours a point | points a day |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    print("\n".join(times))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="the bases that were not run")
    parser.add_argument("--only", choices=list(CASES), help="one of the measured trainings")
    parser.add_argument("--measure", choices=list(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    if args.table:
        paper()
        return
    print("| training | estimated MB | measured MB | quotient | parts |")
    print("|---|---:|---:|---:|---|")
    for case in [args.only] if args.only else CASES:
        print(compare(case), flush=True)


if __name__ == "__main__":
    main()
