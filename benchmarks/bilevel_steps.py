"""Seconds and peak memory of one step of every bilevel method on a language model.

    OMP_NUM_THREADS=1 python benchmarks/bilevel_steps.py --inner 10 --repeats 3

The shape of Figure 12a of the WC-Penalty paper. The problem is that of `bilevel_memory.py`, a
random Llama with LoRA, S upper objectives and N training sets, eager attention and double backward
for all. Methods with a loop inside take `--inner` steps there (the paper: 40); MoCo's Neumann
series has as many terms. Means over three steps, for `wc_augmented` (line searches) over ten,
without its warm start, which is listed apart. Gradients are as `Oracle` counts them.

Memory is the peak resident set above that of the loaded model, each method in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bilevel_memory import build, plain_gradient, resident
from torch import Tensor

from paretune.moo import Preference
from paretune.moo.bilevel import FORUM, GMOBA, ITD, MOML, SOBA, WCSOBA, BilevelProblem, MoCo, Oracle
from paretune.moo.bilevel.equality import EqualityConstrained
from paretune.moo.bilevel.warm_start import warm_adjoint, warm_lower
from paretune.moo.solvers.wc_augmented import WCAugmented
from paretune.moo.solvers.wc_penalty import WCPenalty

SMALL = 1e-4  # steps so small that nothing diverges


def methods(inner: int) -> dict[str, Any]:
    steps = {"alpha": SMALL, "beta": SMALL}
    return {
        "wc_augmented": EqualityConstrained(WCAugmented(), warm_start=False),
        "wc_penalty": EqualityConstrained(WCPenalty(u=1.0, v=1.0, eta=SMALL)),
        "wc_soba": WCSOBA(**steps),
        "soba": SOBA(**steps),
        "gmoba": GMOBA(**steps, eta=SMALL),
        "forum": FORUM(**steps, inner_steps=inner, eta=SMALL),
        "moco": MoCo(**steps, inner_steps=inner, neumann_terms=inner),
        "itd": ITD(**steps, inner_steps=inner),
        "moml": MOML(**steps, inner_steps=inner),
    }


def problem_of(upper: int, lower: int) -> tuple[BilevelProblem, Tensor, Tensor]:
    part = build("eager")
    ids = torch.randint(0, 1024, (upper + lower, 2, 64))

    def loss(n: int, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = part.call(y, input_ids=ids[n], labels=ids[n], use_cache=False).loss
        return found

    def weighted(n: int, x: Tensor, y: Tensor) -> Tensor:
        return torch.softmax(x, 0)[n] * loss(upper + n, x, y)

    problem = BilevelProblem(
        upper=[partial(loss, s) for s in range(upper)],
        lower=[partial(weighted, n) for n in range(lower)],
        hvp="double",
    )
    return problem, torch.zeros(lower), part.vector()


def measure(name: str, inner: int, upper: int, lower: int, repeats: int) -> dict[str, float]:
    problem, x, y = problem_of(upper, lower)
    preference = Preference.of([1 / upper] * upper)
    Path("/proc/self/clear_refs").write_text("5")
    before, gradients, seconds = resident("VmRSS"), 0.0, []
    for _ in range(repeats):
        started = time.perf_counter()
        if name == "a gradient":
            plain_gradient(problem.upper_parts[0], x, y)
            seconds.append(time.perf_counter() - started)
            gradients = 1
        elif name == "warm start":
            oracle = Oracle(problem)
            warm_adjoint(oracle, x, warm_lower(oracle, x, y, 0.0), torch.full((upper,), 1 / upper))
            seconds.append(time.perf_counter() - started)
            gradients = oracle.n_gradients
        else:
            count = 10 if name == "wc_augmented" else 3
            found = methods(inner)[name].run(problem, preference, (x, y), count, 0.0)
            steps = max(1, int(found.history.step[-1]))
            seconds.append(found.seconds / steps)
            gradients = found.n_gradient_evaluations / steps
    megabytes = (resident("VmHWM") - before) / 1024
    return {"seconds": statistics.median(seconds), "gradients": gradients, "megabytes": megabytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upper", type=int, default=5, help="S")
    parser.add_argument("--lower", type=int, default=2, help="N")
    parser.add_argument("--inner", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (args.inner, args.upper, args.lower, args.repeats)
    if args.one:
        print(json.dumps(measure(args.one, *sizes)))
        return
    print(f"S={args.upper}, N={args.lower}, {args.inner} inner steps\n")
    print("| one step of | seconds | in gradients' time | gradients | peak MB |")
    print("|" + "---|" * 5)
    unit = 0.0
    for name in ("a gradient", *methods(args.inner), "warm start"):
        command = [sys.executable, __file__, "--one", name]
        for key in ("upper", "lower", "inner", "repeats"):
            command += [f"--{key}", str(getattr(args, key))]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(out.splitlines()[-1])
        unit = unit or found["seconds"]
        print(
            f"| {name} | {found['seconds']:.2f} | {found['seconds'] / unit:.1f} | "
            f"{found['gradients']:.1f} | {found['megabytes']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
