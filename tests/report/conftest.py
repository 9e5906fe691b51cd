"""Run folders made in code: fronts of any number of objectives, comparisons, hostile answers."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from paretune.files import write_json
from paretune.moo.calibration import Calibration
from paretune.moo.gates import Gate
from paretune.moo.preference import Preference, das_dennis
from paretune.results.comparison import Cell, Comparison
from paretune.results.front import Front, FrontPoint, ObjectiveMetrics, Score
from paretune.results.gates import write_gates
from paretune.results.text_statistics import TextStatistics

HOSTILE = (
    "<script>alert(1)</script> </script><img src=x onerror=alert(2)> **bold** "
    "[x](javascript:alert(3)) {{ 7 * 7 }} <!-- &lt; \u2028 line\nnext"
)
VERSIONS = {"started": "2026-01-01T00:00:00+00:00", "python": "3.11.7", "paretune": "0.1"}


def make_point(
    preference: Preference, folder: str, shift: float = 0.0, seed: int = 0, base: bool = False
) -> FrontPoint:
    metrics = {}
    for k, (name, weight) in enumerate(preference.items()):
        loss = math.log(2) if base else 0.3 + shift + (k + 1) * 0.2 * (1 - weight) ** 2
        metrics[name] = ObjectiveMetrics(loss, 0.9 - 0.3 * loss, 1 - loss, math.exp(1 + loss))
    return FrontPoint(
        preference=dict(preference),
        metrics=metrics,
        chebyshev=max(w * metrics[n].loss for n, w in preference.items()),
        seed=seed,
        folder=folder,
        scores={name: Score(-10 * m.loss, 0.3, 4) for name, m in metrics.items()},
        answer_tokens=31.5,
        text=TextStatistics(0.25, 0.01, 0.5, 0.8, 0.0, 0.1, 4),
        training={}
        if base
        else {
            "steps": 40,
            "seconds": 100.0,
            "vertex_share": 0.5,
            "solver_share": 1e-4,
            "spend": {"policy_tokens": 1000, "seconds": 100.0},
        },
    )


def make_log(objectives: Sequence[str], steps: int = 40) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        row: dict[str, Any] = {"step": step, "loss": 0.5}
        for k, name in enumerate(objectives):
            row[f"{name}/loss"] = 0.7 - 0.005 * step + 0.05 * math.sin(step + k)
            row[f"lambda/{name}"] = (1 + math.sin(step / 9 + k)) / 2 / len(objectives)
            row[f"gradient_norm/{name}"] = 2 + k + math.cos(step)
        for a, b in itertools.combinations(objectives, 2):
            row[f"cosine/{a}|{b}"] = math.sin(step / 5 + len(a))
        row |= {"clamp/mgda_term": 2 + math.sin(step), "clamp/chebyshev_term": 60 - step}
        row["time/solver_share"] = 1e-4
        rows.append(row)
    return [*rows, {"step": steps, "train_runtime": 1.0}]


def fill_folder(folder: Path, objectives: Sequence[str], who: str, base: bool = False) -> None:
    """What training and measuring leave in a point's folder."""
    folder.mkdir(parents=True)
    answers = [
        {
            "prompt": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": f"Question {n} <b>?"},
            ],
            "response": f"{who} answers {n}. {HOSTILE if n == 1 else ''}",
            "finished": n != 2,
            "scores": dict.fromkeys(objectives, n / 3),
        }
        for n in range(7)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    if not base:
        log = "".join(json.dumps(row) + "\n" for row in make_log(objectives))
        (folder / "log.jsonl").write_text(log)
        write_json(folder / "adapter_config.json", {"r": 8})


def write_run(run: Path, objectives: Sequence[str], **more: Any) -> None:
    """The recipe and manifest of a run."""
    run.mkdir(parents=True, exist_ok=True)
    recipe = {
        "name": run.name,
        "description": "Made in code <i>for tests</i>.",
        "model": {"name": "org/base-1b", "dtype": "bfloat16", "quantization": "8bit"},
        "lora": {"r": 8, "alpha": 32},
        "data": {"loader": "safe_rlhf", "objectives": list(objectives), "path": None},
        "loss": {"name": "dpo", "beta": 0.1},
        "train": {"max_steps": 40, "learning_rate": 5e-5},
        **more,
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    counts = {
        "prompts": 100,
        "pairs": dict.fromkeys(objectives, 1234),
        "conflicts": {
            f"{objectives[0]}|{objectives[1]}": {"common": 50, "rate": 0.25},
        },
    }
    own = {"rows": 2000, "tie_rule": "drop", "ties": dict.fromkeys(objectives, 7)}
    na = {"na_dropped": dict.fromkeys(objectives, 3)}
    manifest = {
        "data": {"all": {**own, **na, **counts}, "train": counts, "test": counts},
        "normalisation": {"ideal": dict.fromkeys(objectives, 0.25), "nadir": None},
        "sessions": [VERSIONS],
    }
    write_json(run / "manifest.json", manifest)


def make_sweep(
    run: Path, objectives: Sequence[str], divisions: int = 4, base: bool = False
) -> Path:
    grid = das_dennis(len(objectives), divisions)
    plan = {"preferences": [list(weights) for weights in grid], "seeds": [0]}
    write_run(run, objectives, method={"name": "clamp", "mu": 100.0}, sweep=plan)
    points = []
    for weights in grid:
        preference = Preference.of(dict(zip(objectives, weights, strict=True)))
        folder = f"points/{preference.slug()}"
        points.append(make_point(preference, folder))
        fill_folder(run / folder, objectives, f"clamp {preference.slug()}")
    Front.of(points, name=run.name, method="clamp").write(run / "front.json")
    if base:
        equal = Preference.of(dict.fromkeys(objectives, 1 / len(objectives)))
        fill_folder(run / "base", objectives, "base", base=True)
        write_json(
            run / "base" / "metrics.json", make_point(equal, "points/x", base=True).to_json()
        )
    return run


def make_steerable(run: Path, objectives: Sequence[str], divisions: int = 4) -> Path:
    """A sweep whose points come of one adapter, with its gate and calibration."""
    make_sweep(run, objectives, divisions, base=True)
    size = len(objectives)
    grid = np.array(das_dennis(size, 4))
    losses = 0.4 + (np.arange(size) + 1) * 0.2 * (1 - grid) ** 2
    dial = run / "shared" / "dial-1-seed0"
    dial.mkdir(parents=True)
    write_json(dial / "adapter_config.json", {"r": 2 * size})
    write_gates(dial, Gate(size), objectives, Calibration(grid, losses))
    fill_folder(run / "shared" / "conditioned-1-seed0", objectives, "training")
    front = Front.read(run / "front.json")
    training = {"steps": 0, "shared": ["conditioned-1-seed0", dial.name]}
    points = [
        replace(point, training={**training, "position": dict(point.preference)})
        for point in front.points
    ]
    replace(front, points=tuple(points), method="conditioned").write(run / "front.json")
    for point in points:
        (run / point.folder / "log.jsonl").unlink()
    return run


def make_comparison(
    run: Path, objectives: Sequence[str], seeds: Sequence[int] = (0, 1), divisions: int = 4
) -> Path:
    titles = ("CLAMP", "PWG", "MODPO")
    grid = das_dennis(len(objectives), divisions)[1:-1]
    plan = {"preferences": [list(weights) for weights in grid], "seeds": list(seeds)}
    methods = [{"name": "clamp", "label": title} for title in titles]
    write_run(run, objectives, methods=methods, sweep=plan)
    cells = []
    for k, title in enumerate(titles):
        for seed in seeds:
            points = []
            for weights in grid:
                preference = Preference.of(dict(zip(objectives, weights, strict=True)))
                folder = f"cells/{title.lower()}-seed{seed}/points/{preference.slug()}"
                shift = 0.02 * k + 0.004 * seed
                points.append(make_point(preference, folder, shift, seed))
                fill_folder(run / folder, objectives, f"{title} {preference.slug()} {seed}")
            failed = title == "MODPO" and seed == seeds[-1]
            cells.append(
                Cell(
                    title=title,
                    method="clamp",
                    options={"name": "clamp", "mu": 100.0},
                    seed=seed,
                    points=tuple(points),
                    missing=("harmless1.00",) if failed else (),
                    failure="no <result>" if failed else None,
                )
            )
    equal = Preference.of(dict.fromkeys(objectives, 1 / len(objectives)))
    fill_folder(run / "base", objectives, "base", base=True)
    comparison = Comparison.of(
        cells,
        name=run.name,
        objectives=objectives,
        base=make_point(equal, "base", base=True),
        shared={},
    )
    write_json(run / "compare.json", comparison.to_json())
    return run


@pytest.fixture
def sweep() -> Callable[..., Path]:
    """``make_sweep``."""
    return make_sweep


@pytest.fixture
def steerable() -> Callable[..., Path]:
    """``make_steerable``."""
    return make_steerable


@pytest.fixture
def comparison() -> Callable[..., Path]:
    """``make_comparison``."""
    return make_comparison
