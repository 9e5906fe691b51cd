"""One optimiser step, side by side: how its time and memory grow with the number of objectives.

    python benchmarks/step.py --threads 2 --repeats 5 --output step.json
    python benchmarks/step.py --data demo --objectives 2
    python benchmarks/step.py --data pairs.jsonl --max-length 128 --objectives 2
    python benchmarks/step.py --full --pairs 1 --objectives 3

Every contender takes the same DPO step (AdamW included, learning rate 0 so that all repeats see
the same model) on SmolLM2-135M with LoRA r=8 on all linear layers, or with ``--full`` on all of
its weights, with and without a bank of M gradients; only the floors have no optimiser. The floor is
one forward and one backward over the distinct tokens of the batch, each prompt once and no padding;
the padded floor is that over the padded sequences.

Batches are of random tokens, sequences of one length: ``shared``, which all objectives label,
or ``disjoint``, own ones for each; of ``answers``, four ragged ones to each prompt, of which each
objective labels its own pair; of the demo; or of a local file with the columns of PKU-SafeRLHF and
dialogues as prompts. Of real data it is the batch of median padding among 51; objectives beyond
those of the data label the first one's pairs at random.

Times are CPU seconds, medians over repeats that take the contenders in turn. Peak memory is that
of a process of its own for each contender, above what it holds with the model loaded and touched;
Linux only; `--no-memory` leaves it out. TRL and TorchJD take part where they are installed
(`pip install paretune[bench]`).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from step_contenders import CONTENDERS, FULL, Case, Step, floor
from torch import Tensor, nn

from paretune.data import demo, safe_rlhf
from paretune.data.sampling import PairCollator, PairRows, Row
from paretune.data.tokenization import PairIndex, TokenizedPairs, TokenSequence, tokenize_pairs
from paretune.logprobs import score_sequences
from paretune.models import EMBEDDED, load_model_and_tokenizer

SAME_DIRECTION = (
    "packed",
    "packed_torch",
    "one_pass",
    "one_pass_torch",
    "shared_forward",
    "algorithm_1",
    "layerwise",
    "bank",
)
HIGH_WATER = Path("/proc/self/clear_refs")  # resets VmHWM when "5" is written to it; Linux


def load_model(full: bool) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, tokenizer = load_model_and_tokenizer(EMBEDDED, dtype="float32")
    if full:
        return model.train(), tokenizer
    config = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # away from 0, where half of the gradients vanish
            nn.init.normal_(parameter, std=1e-3)
    return adapted.train(), tokenizer


def make_case(
    args: argparse.Namespace, m: int, layout: str, model: nn.Module, tokenizer: Any
) -> Case:
    if layout == "real":
        data, rows = real_batch(args, m, tokenizer)
    else:
        make = answers if layout == "answers" else equal
        data = make(args, m, layout, torch.Generator().manual_seed(m))
        rows = [dict.fromkeys(data.pairs, row) for row in range(args.pairs)]
    used = {
        side[row[name]]
        for name, index in data.pairs.items()
        for row in rows
        for side in (index.chosen, index.rejected)
    }
    data.reference = torch.zeros(len(data.sequences))
    some = sorted(used)
    with nullcontext() if args.full else model.disable_adapter():  # type: ignore[operator]
        sequences = [data.sequences[i] for i in some]
        data.reference[some] = score_sequences(model, sequences, tokenizer.pad_token_id)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return Case(model, tokenizer, data, rows, torch.optim.AdamW(parameters, lr=0.0))


def equal(
    args: argparse.Namespace, m: int, layout: str, generator: torch.Generator
) -> TokenizedPairs:
    """Sequences of one length; pairs that objectives share or not."""
    owners = 1 if layout == "shared" else m
    prompt_length = args.prompt or args.length // 3
    sequences = []
    for _ in range(owners * args.pairs):
        prompt = _random_ids(prompt_length, generator)
        for _side in range(2):
            answer = _random_ids(args.length - prompt_length, generator)
            sequences.append(TokenSequence((*prompt, *answer), prompt_length))
    pairs = {}
    for objective in range(m):
        first = 2 * args.pairs * (objective % owners)
        flips = torch.randint(2, (args.pairs,), generator=generator).tolist()
        chosen = [first + 2 * i + flip for i, flip in enumerate(flips)]
        rejected = [first + 2 * i + 1 - flip for i, flip in enumerate(flips)]
        prompts = list(range(first, first + args.pairs))
        pairs[f"objective_{objective}"] = PairIndex(chosen, rejected, prompts, [1.0] * args.pairs)
    return TokenizedPairs(sequences, pairs)


def answers(
    args: argparse.Namespace, m: int, layout: str, generator: torch.Generator
) -> TokenizedPairs:
    """Four answers to each prompt, of half to one and a half times the mean length."""
    prompt_length = args.prompt or args.length // 3
    mean = args.length - prompt_length
    sequences: list[TokenSequence] = []
    pairs = {f"objective_{objective}": PairIndex() for objective in range(m)}
    for row in range(args.pairs):
        prompt, first = _random_ids(prompt_length, generator), len(sequences)
        for _answer in range(4):
            length = int(torch.randint(mean // 2, 3 * mean // 2, (1,), generator=generator))
            sequences.append(
                TokenSequence((*prompt, *_random_ids(length, generator)), prompt_length)
            )
        for index in pairs.values():
            chosen, rejected = torch.randperm(4, generator=generator)[:2].tolist()
            index.chosen.append(first + chosen)
            index.rejected.append(first + rejected)
            index.prompt.append(row)
            index.weight.append(1.0)
    return TokenizedPairs(sequences, pairs)


def real_batch(
    args: argparse.Namespace, m: int, tokenizer: Any
) -> tuple[TokenizedPairs, list[Row]]:
    """Of 51 random batches the one whose padded positions, by its distinct tokens, are median."""
    load = partial(safe_rlhf.load, args.data, style="dialogue", bad_rows="skip")
    given = demo.load() if args.data == "demo" else load()
    pairs: dict[str, Any] = {name: given.pairs[name] for name in list(given.pairs)[:m]}
    flips = random.Random(0)
    while len(pairs) < m:  # the first one's pairs with labels of their own
        pairs[f"objective_{len(pairs)}"] = [
            {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
            if flips.random() < 0.5
            else row
            for row in next(iter(pairs.values()))
        ]
    names = list(pairs)
    data = tokenize_pairs(pairs, tokenizer, args.max_length)
    rows = PairRows(data, names, "joint")
    collate = PairCollator(data, tokenizer.pad_token_id)
    batches = []
    for seed in range(51):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        some = [rows[i] for i in order[: args.pairs].tolist()]
        batch = collate(some)
        batches.append((batch["input_ids"].numel() / batch["packed"].tokens, seed, some))
    return data, sorted(batches, key=lambda each: each[:2])[25][2]


def _random_ids(count: int, generator: torch.Generator) -> list[int]:
    # SmolLM2's first tokens are special.
    return torch.randint(100, 49_000, (count,), generator=generator).tolist()


def run(case: Case, step: Step) -> float:
    case.optimizer.zero_grad()
    gc.collect()
    start = time.process_time()  # which a busy machine does not lengthen
    step()
    return time.process_time() - start


def time_contenders(case: Case, names: list[str], repeats: int) -> tuple[dict[str, Any], float]:
    """CPU seconds of every repeat, and the largest relative distance between CLAMP's directions."""
    steps = {name: CONTENDERS[name][1](case) for name in names}
    directions = {}
    for name, step in steps.items():  # warm-up
        run(case, step)
        if name in SAME_DIRECTION:
            gradients = [p.grad for p in case.parameters if p.grad is not None]
            directions[name] = torch.cat([g.flatten() for g in gradients]).double()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, step in steps.items():
            seconds[name].append(run(case, step))
    first = next(iter(directions.values()))
    return seconds, max(_distance(found, first) for found in directions.values())


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def measure_memory(args: argparse.Namespace, m: int, layout: str, name: str) -> float:
    """Peak MiB of one contender's steps, from a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--objectives", str(m)]
    command += ["--layouts", layout, "--threads", str(args.threads)]
    command += ["--pairs", str(args.pairs), "--length", str(args.length)]
    command += ["--prompt", str(args.prompt)] if args.prompt else []
    command += ["--data", args.data] if args.data else []
    command += ["--max-length", str(args.max_length)]
    command += ["--full"] if args.full else []
    # What is freed goes back to the system at once, so that the peak is of live data.
    eager = {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": "0"}
    environment = {**os.environ, **eager}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(result.stdout.splitlines()[-1])


def peak_of_this_process(case: Case, name: str, full: bool) -> float:
    """MiB above the state with model, gradients of an adapter and optimiser state in place."""
    run(case, floor(case))  # touches every weight and makes the gradients
    case.optimizer.step()
    if full:  # their gradient is part of what is measured
        case.optimizer.zero_grad()
    gc.collect()
    before = _status("VmRSS")
    HIGH_WATER.write_text("5")
    step = CONTENDERS[name][1](case)
    for _ in range(2):
        run(case, step)
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def table(row: dict[str, Any]) -> str:
    """One case as Markdown."""
    medians = {name: statistics.median(found) for name, found in row["seconds"].items()}
    peaks = row["peak_mib"]
    beside, title = ("bank", "the bank") if "bank" in medians else ("one_pass", "padded one pass")
    lines = [
        f"### M = {row['m']}, {row['layout']} pairs: {row['sequences']} sequences, "
        f"{row['padded']} padded positions, {row['tokens']} distinct tokens\n",
        f"| contender | median s | min to max | / floor | / {title} | peak MiB | / floor |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, median in medians.items():
        seconds = row["seconds"][name]
        cells = [
            CONTENDERS[name][0],
            f"{median:.3f}",
            f"{min(seconds):.3f} to {max(seconds):.3f}",
            f"{median / medians['floor']:.2f}",
            f"{median / medians[beside]:.2f}",
            f"{peaks[name]:.0f}" if name in peaks else "",
            f"{peaks[name] / peaks['floor']:.2f}" if name in peaks else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"\nCLAMP's directions agree to {row['distance']:.1e} (relative).\n")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objectives", type=int, nargs="+", default=[1, 2, 3, 5], metavar="M")
    parser.add_argument("--layouts", nargs="+", default=["shared", "disjoint"])
    parser.add_argument("--data", help="demo, or a file of pairs; in place of random tokens")
    parser.add_argument("--max-length", type=int, default=1024, help="longest row of real data")
    parser.add_argument("--pairs", type=int, default=4, help="pairs per objective and step")
    parser.add_argument("--length", type=int, default=96, help="tokens of a sequence")
    parser.add_argument("--prompt", type=int, help="those of its prompt; by default a third")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", metavar="NAME")
    parser.add_argument("--full", action="store_true", help="train all weights")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=Path, help="also write all figures as JSON")
    parser.add_argument("--memory-of", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.data:
        args.layouts = ["real"]
    own = [name for name in CONTENDERS if name == "floor" or (name in FULL) == args.full]
    args.contenders = args.contenders or own
    needed = set(FULL) if args.full else {"floor", "packed", "one_pass"}
    if unknown := [name for name in args.contenders if name not in own]:
        parser.error(f"unknown contender {unknown[0]}; there are {', '.join(own)}")
    if missing := sorted(needed - set(args.contenders)):
        parser.error(f"the table needs {', '.join(missing)}")
    return args


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        case = make_case(args, args.objectives[0], args.layouts[0], *load_model(args.full))
        case.exclusive = True
        print(peak_of_this_process(case, args.memory_of, args.full))
        return
    names = []
    for name in args.contenders:
        package = CONTENDERS[name][2]
        if package is None or importlib.util.find_spec(package):
            names.append(name)
        else:
            print(f"{name} is left out: {package} is not installed.")
    print(f"torch {torch.__version__} on {platform.machine()}, {args.threads} threads, float32,")
    print(f"medians of {args.repeats} interleaved repeats.\n")
    model, tokenizer = load_model(args.full)
    rows = []
    for m in args.objectives:
        for layout in args.layouts if m > 1 or args.data else ["shared"]:
            case = make_case(args, m, layout, model, tokenizer)
            seconds, distance = time_contenders(case, names, args.repeats)
            measured = names if HIGH_WATER.exists() and not args.no_memory else []
            row = {
                "m": m,
                "layout": layout,
                "sequences": len(case.batch["lengths"]),
                "padded": case.batch["input_ids"].numel(),
                "tokens": case.batch["packed"].tokens,
                "threads": args.threads,
                "seconds": seconds,
                "distance": distance,
                "peak_mib": {name: measure_memory(args, m, layout, name) for name in measured},
            }
            rows.append(row)
            print(table(row), flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
