"""`model.shard: true` on the embedded model: two processes beside one, and killed half-way.

    python benchmarks/shard.py     # six trainings of ten steps on two CPU cores, ten minutes

For CLAMP and for the steerable adapter, `paretune sweep` is run (a) in one process, (b) by torchrun
in two that share the base, each with half of every batch, (c) the same, one process of which is
killed (SIGKILL) after the first checkpoint, and started again. Printed are the numbers of the base
in each process, the largest difference of any trained number between (a) and (b), and whether (c)
has the bytes of (b).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMON = (
    "model.shard=true",
    "train.max_steps=10",
    "train.save_steps=4",
    "train.learning_rate=1e-4",
    "sweep.preferences=[[0.5, 0.5]]",
    "evaluation.generate=false",
    "data.split=[0.9, 0.05, 0.05]",  # the training is what counts
)
METHODS = {
    "clamp": ("method={name: clamp}",),
    "steerable": ("method={name: conditioned, calibrate: none}",),
}
ROWS = 2  # of a step, in all processes together


def rank(arguments: list[str]) -> None:
    """One process of a run, which is `paretune`'s but for printing what it holds of the base."""
    from paretune import cli
    from paretune.experiment import setup

    load = setup.load_model_and_tokenizer

    def measured(*args: object, **kwargs: object) -> object:
        model, tokenizer = load(*args, **kwargs)  # type: ignore[arg-type]
        held = sum(getattr(p, "to_local", lambda p=p: p)().nbytes for p in model.parameters())
        print("holds", held, flush=True)
        return model, tokenizer

    setup.load_model_and_tokenizer = measured  # type: ignore[assignment]
    cli.main(arguments)


def start(processes: int, run: Path, method: str) -> subprocess.Popen[str]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    batch = f"train.per_device_train_batch_size={ROWS // processes}"
    sweep = ["sweep", "demo", *COMMON, *METHODS[method], batch, f"output_dir={run}"]
    command += [str(Path(__file__).resolve()), "--rank", json.dumps(sweep)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> list[int]:
    """The bytes of the base that each process of a run held."""
    printed, _ = process.communicate()
    assert process.returncode == 0
    lines = (line.split() for line in printed.splitlines())
    return [int(words[1]) for words in lines if words[:1] == ["holds"]]


def kill_after_a_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    while not list(run.rglob("checkpoint-4/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.2)
    time.sleep(5.0)  # a step or two later
    claim = next(path for path in (run / "claims").iterdir() if path.name.startswith("worker."))
    os.kill(json.loads(claim.read_text())["pid"], signal.SIGKILL)
    process.communicate()
    assert process.returncode != 0


def adapters(run: Path) -> dict[str, Path]:
    return {str(path.relative_to(run)): path for path in run.rglob("adapter_model.safetensors")}


def distance(first: Path, second: Path) -> float:
    """The largest difference of two runs' trained numbers."""
    from safetensors.torch import load_file

    worst, theirs = 0.0, adapters(second)
    for name, path in adapters(first).items():
        other = load_file(theirs[name])
        for key, value in load_file(path).items():
            worst = max(worst, float((value - other[key]).abs().max()))
    return worst


def compare(method: str, place: Path) -> str:
    """A row of the table."""
    (whole,) = finish(start(1, place / "one", method))[:1]
    parts = finish(start(2, place / "two", method))
    killed = start(2, place / "killed", method)
    kill_after_a_checkpoint(killed, place / "killed")
    assert not any("checkpoint" not in name for name in adapters(place / "killed"))
    finish(start(2, place / "killed", method))
    far = distance(place / "one", place / "two")
    again, two = adapters(place / "killed"), adapters(place / "two")
    same = again.keys() == two.keys() and all(
        path.read_bytes() == two[name].read_bytes() for name, path in again.items()
    )
    held = " and ".join(f"{each / 1e6:.0f}" for each in parts[:2])
    return f"| {method} | {whole / 1e6:.0f} | {held} | {far:.1e} | {'yes' if same else 'no'} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(METHODS))
    parser.add_argument("--keep", type=Path, help="a new folder for the runs, which then stay")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank(json.loads(args.rank))
        return
    print("| method | base in one process, MB | in two, MB | largest difference | resumed equal |")
    print("|---|---:|---:|---:|---|")
    for method in [args.only] if args.only else METHODS:
        with tempfile.TemporaryDirectory() as folder:
            print(compare(method, (args.keep or Path(folder)) / method), flush=True)


if __name__ == "__main__":
    main()
