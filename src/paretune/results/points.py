"""Points of a run folder: those planned, and what was measured of them by now."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paretune.errors import InputError
from paretune.files import read_object
from paretune.moo.preference import Preference
from paretune.results.comparison import Cell, Comparison
from paretune.results.dial import DialPoints
from paretune.results.front import Front, FrontPoint, read_point
from paretune.results.weights import TRAINING
from paretune.spend import Spend


def read_spend(folder: Path) -> Spend:
    """What the trained point or shared thing in `folder` took.

    Raises:
        InputError: its ``training.json`` is damaged.
    """
    path = folder / TRAINING
    try:
        return Spend.from_json(read_object(path)["spend"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"'{path}' is damaged ({error}): delete the folder '{folder}' and run the command "
            "again."
        ) from error


@dataclass(frozen=True)
class PlannedPoint:
    """A point to train: its preference and seed, and the name of its folder."""

    preference: Preference
    seed: int
    name: str

    @property
    def path(self) -> str:
        """Its folder, below the run's."""
        return f"points/{self.name}"

    def folder(self, run: Path) -> Path:
        return run / self.path


def measured_sweep(run: Path, recipe: Mapping[str, Any]) -> Front | None:
    """The front of the points measured so far, in the recipe's order; None without any."""
    given = recipe["sweep"]["preferences"]  # none where points are placed one after the other
    order = None if given is None else [tuple(weights) for weights in given]
    points = measured_points(run)
    if not points:
        return None

    def place(point: FrontPoint) -> tuple[int, Any]:
        weights = tuple(point.preference.values())
        return point.seed, weights if order is None else order.index(weights)

    points.sort(key=place)
    return Front.of(
        points,
        name=recipe["name"],
        method=recipe["method"]["name"],
        reference_point=_reference(recipe),
    )


def measured_points(run: Path) -> list[FrontPoint]:
    """The finished points of a run, in the order of their folders' names."""
    return _measured(run, run / "points")


def measured_comparison(run: Path, recipe: Mapping[str, Any]) -> Comparison | None:
    """The comparison of the points measured so far; None without any."""
    objectives = recipe["data"]["objectives"]
    cells = []
    for method in recipe["methods"]:
        title = method.get("label") or method["name"]
        planned = [
            Preference.of(dict(zip(objectives, weights, strict=True))).slug()
            for weights in method.get("preferences") or recipe["sweep"]["preferences"]
        ]
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        for seed in method.get("seeds") or recipe["sweep"]["seeds"]:
            cells.append(_cell(run, f"{slug}-seed{seed}", title, method, seed, planned))
    base = run / "base" / "metrics.json"
    if not base.is_file() and not any(cell.points for cell in cells):
        return None
    shared = sorted((run / "shared").glob("*/training.json"))
    return Comparison.of(
        cells,
        name=recipe["name"],
        objectives=objectives,
        base=replace(read_point(base.parent), folder="base") if base.is_file() else None,
        shared={path.parent.name: read_spend(path.parent) for path in shared},
        reference_point=_reference(recipe),
    )


def _cell(
    run: Path, name: str, title: str, method: Mapping[str, Any], seed: int, planned: Sequence[str]
) -> Cell:
    folder = run / "cells" / name
    points = {Path(p.folder).name: p for p in _measured(run, folder / "points")}
    settings = folder / "method.json"
    return Cell(
        title=title,
        method=method["name"],
        options=read_object(settings).get("options", {}) if settings.is_file() else {},
        seed=seed,
        points=tuple(points[slug] for slug in planned if slug in points),
        missing=tuple(slug for slug in planned if slug not in points),
        dial=DialPoints.read(folder),
    )


def _measured(run: Path, folder: Path) -> list[FrontPoint]:
    """The finished points in a folder; their own folders are given below the run's."""
    found = sorted(path.parent for path in folder.glob("*/metrics.json"))
    return [replace(read_point(path), folder=str(path.relative_to(run))) for path in found]


def _reference(recipe: Mapping[str, Any]) -> list[float] | None:
    reference = (recipe.get("evaluation") or {}).get("reference_point")
    return None if reference is None else [reference[n] for n in recipe["data"]["objectives"]]
