"""Peak memory and CPU time of response log-probabilities and their gradient at the head.

    python benchmarks/head.py --tokens 1024 --vocabulary 131072 --width 256

The logits of all tokens at once against chunks whose gradient is made in the forward pass, each in
a process of its own; Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear

from paretune.logprobs.head import chunked_logps


def measure(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    hidden = torch.randn(args.tokens, args.width, dtype=dtype, requires_grad=True)
    weight = (torch.randn(args.vocabulary, args.width) / args.width**0.5).to(dtype)
    targets = torch.randint(args.vocabulary, (args.tokens,))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    start = time.process_time()
    if args.way == "chunks":
        logps = chunked_logps(hidden, weight, None, targets)
    else:
        logits = linear(hidden, weight)
        logps = -cross_entropy(logits.float(), targets, reduction="none")
    logps.sum().backward()
    seconds = time.process_time() - start
    assert hidden.grad is not None
    size = float(hidden.grad.double().norm())
    print(
        f"{args.way:14s} peak +{(_status('VmHWM') - before) / 1024:.0f} MiB, {seconds:.2f} s, "
        f"sum {float(logps.detach().sum()):.3f}, gradient's norm {size:.6f}"
    )


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=131_072)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--way", choices=["chunks", "all at once"], help=argparse.SUPPRESS)
    args: Any = parser.parse_args()
    if args.way:
        measure(args)
        return
    for way in ("all at once", "chunks"):
        subprocess.run([sys.executable, *sys.argv, "--way", way], check=True)


if __name__ == "__main__":
    main()
