"""Time and memory at the sizes that people have: pairs, fronts, reports, judges, preferences.

    python benchmarks/load.py [pairs front report judge explore] [--most 200000]

Each size is a process of its own, so that the peak is that of the size alone. The tokenizer is made
here from a handful of words; nothing is trained or downloaded, and the judge answers at once.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WORDS = "the quick brown fox jumps over lazy dog while seven small cats sleep by a fire"
TWO = ("harmless", "helpful")


def sentence(source: random.Random, words: int) -> str:
    return " ".join(source.choices(WORDS.split(), k=words))


def pairs(size: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """Load `size` pairs, split them by prompt, tokenise them, and read their tokens again."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from paretune.data.local import load_pairs
    from paretune.data.splitting import split_by_prompt
    from paretune.data.token_cache import cached_pairs

    source = random.Random(0)
    with (folder / "pairs.jsonl").open("w") as file:
        for n in range(size):
            row = {"prompt": f"{n} {sentence(source, 12)}?\n"}
            row |= {"chosen": sentence(source, 40), "rejected": sentence(source, 40)}
            file.write(json.dumps(row) + "\n")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([WORDS] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    found: dict[str, Any] = {}

    def load() -> None:
        found["data"] = load_pairs({"better": folder / "pairs.jsonl"})

    def split() -> None:
        found["parts"] = split_by_prompt(found["data"], (0.9, 0.05, 0.05), 0)

    def tokenise() -> None:
        cached_pairs(folder, found["parts"]["train"].pairs, tokenizer, max_length=256)

    return {"load": load, "split": split, "tokenise": tokenise, "tokens again": tokenise}


def points(size: int) -> list[Any]:
    """Points on a curve of trade-offs, every third one dominated."""
    from paretune.results.front import FrontPoint, ObjectiveMetrics, Score
    from paretune.results.text_statistics import TextStatistics

    made = []
    for n in range(size):
        p = n / max(size - 1, 1)
        worse = 0.01 * (n % 3 == 0)
        losses = {"harmless": 0.3 + worse + 0.3 * (1 - p) ** 2, "helpful": 0.3 + worse + 0.3 * p**2}
        made.append(
            FrontPoint(
                preference={"harmless": p, "helpful": 1 - p},
                metrics={k: ObjectiveMetrics(v, 0.8, 1 - v, 2.0) for k, v in losses.items()},
                chebyshev=max(p * losses["harmless"], (1 - p) * losses["helpful"]),
                folder=f"points/p{n}",
                scores={k: Score(-v, 0.1, 8) for k, v in losses.items()},
                answer_tokens=30.0,
                text=TextStatistics(0.1, 0.1, 0.5, 0.8, 0.0, 0.1, 8),
                training={"steps": 100, "seconds": 60.0, "spend": {}},
            )
        )
    return made


def front(size: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """A front of `size` points: non-dominated ones, hypervolume, written, read and drawn."""
    from paretune.report.figures import PlotPoint, draw_front
    from paretune.results.front import Front

    made = points(size)

    def front() -> None:
        Front.of(made, name="load", method="clamp").write(folder / "front.json")

    def draw() -> None:
        drawn = [PlotPoint(point.losses, f"{n}") for n, point in enumerate(made)]
        draw_front({"load": drawn}, TWO, folder / "front.png")

    return {"front": front, "read": lambda: Front.read(folder / "front.json"), "draw": draw}


def report(size: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """The page of a run of `size` points with answers and logs."""
    from paretune.report.page import render
    from paretune.results.front import Front
    from paretune.results.run_folder import read_runs

    recipe = {"name": "load", "model": {"name": "m"}, "data": {"loader": "pairs"}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    made = points(size)
    Front.of(made, name="load", method="clamp").write(folder / "front.json")
    source = random.Random(0)
    for point in made:
        (folder / point.folder).mkdir(parents=True)
        answers = [{"prompt": f"q{n}", "response": sentence(source, 40)} for n in range(20)]
        log = [{"step": n, "harmless/loss": 0.5, "lambda/harmless": 0.4} for n in range(200)]
        for name, rows in (("answers", answers), ("log", log)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / point.folder / f"{name}.jsonl").write_text(text)

    def page() -> None:
        (folder / "report.html").write_text(render(read_runs([folder])))

    return {"page": page}


class InstantJudge:
    """A judge that gives every answer a 4."""

    model, where, paid, max_tokens, identity = "instant", "here", False, 8, {"name": "instant"}

    def ask(self, questions: Sequence[Any], receive: Callable[[Any], None]) -> None:
        from paretune.judging.questions import Reply

        for start in range(0, len(questions), 500):
            batch = questions[start : start + 500]
            receive(
                [(asked, Reply("Rating: 4\nRationale: plain.", "stop", 9, 9)) for asked in batch]
            )


def judge(size: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """A judge with `size` answers of one point and of the base model, asked, and asked again."""
    from paretune.judging.session import Wanted
    from paretune.runs.judge import judge_run

    recipe = "model: {name: smollm2-135m-instruct}\ndata: {loader: demo, objectives: [concise, "
    recipe += "informative]}\nsweep: {preferences: [[0.8, 0.2]]}\n"
    (folder / "recipe.yaml").write_text(recipe)
    source = random.Random(0)
    for name in ("points/concise0.80-informative0.20", "base"):
        (folder / name).mkdir(parents=True)
        with (folder / name / "answers.jsonl").open("w") as file:
            for n in range(size // 2):
                row = {"prompt": f"question {n}", "response": sentence(source, 60)}
                file.write(json.dumps(row) + "\n")

    def ask() -> None:
        judge_run(folder, InstantJudge(), Wanted(aspects=("helpfulness",)))  # type: ignore[arg-type]

    return {"ask": ask, "again": ask}


def explore(size: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """The toy problem's front at `size` preferences."""
    from paretune.moo import explore, test_problems

    known = test_problems.toy()
    weights = [0.02 + 0.96 * n / (size - 1) for n in range(size)]
    return {"solve": lambda: explore(known.problem, [(w, 1 - w) for w in weights], x0=known.x0)}


KINDS = {
    "pairs": (pairs, (10_000, 50_000, 200_000)),
    "front": (front, (100, 300, 1000)),
    "report": (report, (20, 60, 200)),
    "judge": (judge, (2_000, 6_000, 20_000)),
    "explore": (explore, (100, 300, 1000)),
}


def measure(kind: str, size: int) -> None:
    """One size, in this process: a row of the table; µs are the processor's, each."""
    make, _ = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        for name, step in make(size, Path(folder)).items():
            started, busy = time.perf_counter(), time.process_time()
            step()
            seconds, busy = time.perf_counter() - started, time.process_time() - busy
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            row = f"{seconds:.2f} | {busy:.2f} | {1e6 * busy / size:.0f} | {peak:.0f}"
            print(f"| {kind}: {name} | {size:,} | {row} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kinds", nargs="*", default=[], choices=[*KINDS, []])
    parser.add_argument("--most", type=int, default=200_000, help="Leave out larger sizes.")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SIZE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measure(given.one[0], int(given.one[1]))
        return
    print("| what | size | seconds | of the processor | µs each | peak MB |", flush=True)
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for kind in given.kinds or KINDS:
        for size in KINDS[kind][1]:
            if size <= given.most:
                command = [sys.executable, __file__, "--one", kind, str(size)]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
