"""CLAMP and PWG on a pairs file that labels the same responses for helpfulness and harmlessness.

    python examples/helpful_harmless.py train --data pairs.jsonl [--method NAME ...] [--seed N ...]
    python examples/helpful_harmless.py report

``train`` runs the recipe ``hh_local`` at the six preferences of the CLAMP paper's Task 1. The two
ends are single-objective training, the same for every method, and are trained once. A second seed
repeats the middle points. Everything goes on where it stopped, and methods and seeds can be trained
by several processes at a time. ``report`` writes a table and a picture from what is there.
"""

import argparse
import json
import statistics
from itertools import pairwise
from pathlib import Path

from paretune.progress import Silent
from paretune.recipes.load import load_recipe
from paretune.report.figures import PlotPoint, draw_front, preference_label
from paretune.results.front import Front, FrontPoint
from paretune.runs.sweep import run_sweep

OBJECTIVES = ("harmless", "helpful")
ENDS = [[0.0, 1.0], [1.0, 0.0]]
MIDDLE = [[0.2, 0.8], [0.4, 0.6], [0.6, 0.4], [0.8, 0.2]]
INNER = [[0.4, 0.6], [0.6, 0.4]]

METHODS = {
    "clamp": ("CLAMP, as in the paper", ["method.mu=100"]),
    "clamp_mu10": ("CLAMP, μ = 10", ["method.mu=10"]),
    "pwg": ("PWG", ["method.name=linear"]),
}
SINGLE = "single"


class Steps(Silent):
    """Says which point is under way."""

    def __init__(self, title: str) -> None:
        self.title = title

    def point(self, name: str) -> None:
        print(f"{self.title}: {name}", flush=True)


def folder(output: Path, method: str, seed: int) -> Path:
    return output / f"{method}-seed{seed}"


def train(output: Path, data: Path, method: str, seed: int) -> None:
    if method == SINGLE:
        points, settings = ENDS, []
    else:
        points, settings = (MIDDLE if seed == 0 else INNER), METHODS[method][1]
    target = folder(output, method, seed)
    recipe = load_recipe(
        "hh_local",
        [
            f"data.path={data}",
            "data.bad_rows=skip",
            f"sweep.preferences={json.dumps(points)}",
            f"sweep.seeds=[{seed}]",
            f"output_dir={target}",
            *settings,
        ],
    )
    run_sweep(recipe, progress=Steps(f"{method}, seed {seed}"))


def harmless_weight(point: FrontPoint) -> float:
    return point.preference["harmless"]


def read(output: Path, method: str, seed: int) -> list[FrontPoint]:
    """A method's points, with the ends if they are trained, by the weight of harmless."""
    points: list[FrontPoint] = []
    for name in (SINGLE, method):
        path = folder(output, name, seed) / "front.json"
        if path.exists():
            points += Front.read(path).points
    return sorted(points, key=harmless_weight)


def monotone(points: list[FrontPoint]) -> str:
    """How many of the steps along the front lower the loss whose weight grows, per objective."""
    steps = list(pairwise(points))
    up = sum(b.losses["harmless"] < a.losses["harmless"] for a, b in steps)
    down = sum(a.losses["helpful"] < b.losses["helpful"] for a, b in steps)
    return f"{up}/{len(steps)}, {down}/{len(steps)}"


def unevenness(points: list[FrontPoint], ranges: dict[str, float]) -> float:
    """Standard deviation over mean of the distances between neighbours; 0 is evenly spread."""
    gaps = [
        sum(((a.losses[m] - b.losses[m]) / ranges[m]) ** 2 for m in OBJECTIVES) ** 0.5
        for a, b in pairwise(points)
    ]
    return statistics.pstdev(gaps) / statistics.fmean(gaps)


def report(output: Path, picture: Path) -> None:
    series = {}
    ends = read(output, SINGLE, 0)
    ranges = {m: abs(ends[0].losses[m] - ends[-1].losses[m]) for m in OBJECTIVES}
    print(
        "| method | seed | p(harmless) | loss harmless | loss helpful | accuracy | λ* at a vertex |"
    )
    print("|---|---|---|---|---|---|---|")
    for method, (title, _) in METHODS.items():
        for seed in (0, 1):
            for point in read(output, method, seed):
                losses = " | ".join(f"{point.losses[m]:.3f}" for m in OBJECTIVES)
                accuracy = " / ".join(f"{point.metrics[m].accuracy:.2f}" for m in OBJECTIVES)
                vertex = "" if method == "pwg" else f"{point.training['vertex_share']:.0%}"
                p = f"{harmless_weight(point):.1f}"
                print(f"| {title} | {seed} | {p} | {losses} | {accuracy} | {vertex} |")
        series[title] = [
            PlotPoint(point.losses, preference_label(point.preference))
            for point in read(output, method, 0)
        ]
    print("\n| method | steps in order (harmless, helpful) | unevenness |")
    print("|---|---|---|")
    for method, (title, _) in METHODS.items():
        points = read(output, method, 0)
        print(f"| {title} | {monotone(points)} | {unevenness(points, ranges):.2f} |")
    draw_front(series, OBJECTIVES, picture, title="SmolLM2-135M, helpful against harmless: seed 0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["train", "report"])
    parser.add_argument("--data", type=Path, default=Path("pairs.jsonl"))
    parser.add_argument("--output", type=Path, default=Path("runs/helpful_harmless"))
    parser.add_argument("--method", nargs="+", default=[SINGLE, *METHODS])
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--picture", type=Path, default=Path("docs/images/helpful_harmless.png"))
    arguments = parser.parse_args()
    if arguments.action == "report":
        report(arguments.output, arguments.picture)
        return
    for seed in arguments.seed:
        for method in arguments.method:
            if seed == 0 or method != SINGLE:
                train(arguments.output, arguments.data, method, seed)


if __name__ == "__main__":
    main()
