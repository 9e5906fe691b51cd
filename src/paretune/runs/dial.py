"""Measuring along the gate of an adapter that serves every preference: forward passes only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.files import main_process
from paretune.moo.preference import Preference, das_dennis
from paretune.progress import Report
from paretune.results.dial import DialPoint, DialPoints
from paretune.results.gates import read_calibration

if TYPE_CHECKING:
    from paretune.data import PreferenceData
    from paretune.recipes.schema import Recipe

_DIVISIONS = 4
"""Of an edge of the simplex: p = 0, ¼, ½, ¾, 1."""


def measure_dial(
    recipe: "Recipe",
    preferences: Sequence[Preference],
    dial: Path,
    target: Path,
    splits: "Mapping[Any, PreferenceData]",
    report: Report,
) -> None:
    """Measure the gated adapter in `dial`; the losses go to ``dial.json`` in `target`.

    On the test split at the preferences themselves; on test and validation split at an even grid
    of preferences, through the calibration.
    """
    from paretune.baselines.dial import load_dial

    report("prepare", 0.0)
    data = [splits["validation"], splits["test"]]
    trainer, (validation, test) = load_dial(recipe, dial, data, recipe.sweep.seeds[0])
    names = recipe.data.objectives
    calibration = read_calibration(dial, names)
    grid = das_dennis(len(names), _DIVISIONS)
    wanted = [(p.weights, p.weights, False) for p in preferences]
    wanted += [(p, calibration.position(p), True) for p in grid]

    def named(values: Sequence[float]) -> dict[str, float]:
        return dict(zip(names, values, strict=True))

    points: list[DialPoint] = []
    for preference, position, calibrated in wanted:
        report("evaluate", len(points) / len(wanted))
        losses = named(trainer.losses_at(test, position))
        seen = named(trainer.losses_at(validation, position)) if calibrated else {}
        points.append(DialPoint(named(preference), named(position), calibrated, losses, seen))
    if main_process():
        DialPoints(tuple(points)).write(target)
    report("generate", 1.0)
