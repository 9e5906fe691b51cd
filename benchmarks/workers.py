"""Workers that are killed at random make what one undisturbed worker makes.

    python benchmarks/workers.py               # four workers, nine points, eight SIGKILLs: minutes
    python benchmarks/workers.py --kills 20

A sweep of nine points of a tiny model, by one process and by four of which one after the other is
killed at random moments and replaced. Compared are the bytes of adapters and answers; points are
counted by the trainings that came to their end.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TINY = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny"
WORKERS = 4


def start(run: Path, cache: Path, log: Path) -> subprocess.Popen[bytes]:
    points = [[round(n / 8, 3), round(1 - n / 8, 3)] for n in range(9)]
    command = [
        *(sys.executable, __file__, "--worker", str(log), "sweep", str(TINY / "tiny.yaml")),
        *(f"model.name={TINY / 'model'}", f"data.path={TINY / 'pairs.jsonl'}"),
        *(f"sweep.preferences={points}", "train.max_steps=40", "train.save_steps=5"),
        f"output_dir={run}",
    ]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def worker(log: Path, arguments: list[str]) -> None:
    """`paretune`, but for a line of every training that came to its end."""
    from paretune import cli
    from paretune.runs import point

    train = point.train_point

    def noted(trainer: object, folder: Path, *args: object) -> object:
        trained = (folder / "training.json").exists()
        result = train(trainer, folder, *args)  # type: ignore[arg-type]
        if not trained:
            with log.open("a") as file:
                file.write(f"{folder.name}\n")
        return result

    point.train_point = noted  # type: ignore[assignment]
    cli.main(arguments)


def digests(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.name in ("adapter_model.safetensors", "answers.jsonl")
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        begun = time.monotonic()
        assert start(place / "one", place / "cache-one", place / "one.log").wait() == 0
        alone = time.monotonic() - begun
        run, log = place / "four", place / "four.log"
        workers = [start(run, place / "cache", log) for _ in range(WORKERS)]
        killed = 0
        while killed < args.kills and not (run / "front.json").exists():
            time.sleep(moments.uniform(0.2, 1.2) * alone / args.kills)
            victim = workers.pop(moments.randrange(len(workers)))
            if victim.poll() is None:
                victim.send_signal(signal.SIGKILL)  # and not waited for
                killed += 1
            workers.append(start(run, place / "cache", log))
        codes = [each.wait() for each in workers]
        same = digests(run) == digests(place / "one")
        trained = log.read_text().splitlines()
        print(f"{killed} of {killed + WORKERS} workers killed; the others ended with {codes}")
        print(f"adapters and answers are the bytes of one worker: {same}")
        print(f"{len(trained)} trainings came to their end, of {len(set(trained))} points")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
