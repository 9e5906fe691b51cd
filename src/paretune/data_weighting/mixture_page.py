"""What the cells of a `MixtureRecipe` say together, as tables and for other programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from paretune import yaml_syntax
from paretune.data_weighting.mixture_cell import LEARNED, TRUE, UNIFORM, MixtureResult
from paretune.files import read_jsonl
from paretune.moo.preference import Preference
from paretune.recipes.mixture import MixtureRecipe, SetsTask
from paretune.results.spread import Spread
from paretune.results.table import Column, Table, left, numbers
from paretune.results.text import markdown_text, preference_text

_BAD = 0.15  # of a uniform weight: below it a bad set is found


@dataclass(frozen=True)
class MixtureSummary:
    """A run.

    Attributes:
        name: Of the recipe.
        criteria: Their names.
        preferences: The recipe's points, in order.
        bad, conflicted: As in `Material`.
        cells: All results.
        missing: Cells that have no result yet.
    """

    name: str
    criteria: tuple[str, ...]
    preferences: tuple[Preference, ...]
    bad: tuple[str, ...]
    conflicted: tuple[str, str] | None
    cells: tuple[MixtureResult, ...]
    missing: int

    @property
    def done(self) -> list[MixtureResult]:
        return [cell for cell in self.cells if cell.status == "done"]

    @property
    def failed(self) -> list[MixtureResult]:
        return [cell for cell in self.cells if cell.status == "failed"]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(cell.method for cell in self.done))

    @property
    def sets(self) -> list[str]:
        return list(self.done[0].weights or ()) if self.done else []

    def of(self, method: str, preference: Preference) -> list[MixtureResult]:
        """The finished cells of all seeds."""
        wanted = dict(preference)
        return [c for c in self.done if c.method == method and c.preference == wanted]

    def lines(self) -> list[str]:
        """The weights that were found, a line a method and preference, for the terminal."""
        lines = []
        for preference in self.preferences:
            for method in self.methods:
                cells = self.of(method, preference)
                found = [f"{name} {_weight(cells, name)}" for name in self.sets if cells]
                if found:
                    where = preference_text(dict(preference))
                    lines.append(f"{method}, {where}: {', '.join(found)}")
        return lines

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "criteria": list(self.criteria),
            "bad": list(self.bad),
            "conflicted": self.conflicted,
            "missing": self.missing,
            "cells": [cell.to_json() for cell in self.cells],
        }


def chebyshev(losses: Mapping[str, float], preference: Mapping[str, float]) -> float:
    """max_s p_s f_s."""
    return max(preference[name] * losses[name] for name in preference)


def to_markdown(summary: MixtureSummary) -> str:
    """The page ``weigh.md``."""
    parts = [f"# {markdown_text(summary.name)}"]
    if summary.missing:
        parts.append(f"{summary.missing} cells have no result yet.")
    for preference in summary.preferences:
        parts += _point(summary, preference)
    if summary.conflicted is not None and len(summary.preferences) > 1:
        parts += _monotone(summary, *summary.conflicted)
    parts += _cost(summary)
    for cell in summary.failed:
        parts.append(f"- {cell.method}, seed {cell.seed}: {markdown_text(cell.reason)}")
    return "\n\n".join(parts) + "\n"


def _point(summary: MixtureSummary, preference: Preference) -> list[str]:
    columns = [left("method"), Column("seeds"), *numbers([f"weight of {n}" for n in summary.sets])]
    columns += [left("bad set found")] if summary.bad else []
    columns += numbers([f"{name}: before → after" for name in summary.criteria])
    rows: list[list[Any]] = []
    for method in summary.methods:
        cells = summary.of(method, preference)
        if not cells:
            continue
        row: list[Any] = [method, len(cells)]
        row += [_weight(cells, name) for name in summary.sets]
        if summary.bad:
            limit = _BAD / len(summary.sets)
            found = [all(c.weights[n] < limit for n in summary.bad) for c in cells if c.weights]
            row.append(f"{sum(found)} of {len(found)}")
        for name in summary.criteria:
            first, last = (
                Spread.of([side[name] for side in sides if side])
                for sides in ([c.before for c in cells], [c.after for c in cells])
            )
            row.append(f"{first:.3f} → {last:.3f}")
        rows.append(row)
    if not rows:
        return []
    found_text = (
        f"A bad set is found where its weight is below {_BAD} of 1/{len(summary.sets)}. "
        if summary.bad
        else ""
    )
    lines = [
        f"## {markdown_text(preference_text(dict(preference)))}",
        "Weights after the run, ± their standard deviation over seeds; of one seed, where four of "
        f"five replicates of the path of x end. {found_text}Losses are on rows that drive nothing.",
        Table(columns, rows).to_markdown(),
    ]
    return [*lines, *_retrained(summary, preference)]


def _weight(cells: Sequence[MixtureResult], name: str) -> str:
    spread = Spread.of([c.weights[name] for c in cells if c.weights])
    assert spread is not None
    own = cells[0].interval
    if spread.deviation is None and own is not None:
        return "{:.3f} ({:.3f} to {:.3f})".format(spread.mean, *own[name])
    return f"{spread:.3f}"


def _retrained(summary: MixtureSummary, preference: Preference) -> list[str]:
    """What training anew reaches on the weights found, against equal and true ones."""
    columns = [left("method"), left("mix"), *numbers(summary.criteria), Column("max p f")]
    columns += [Column("max p f less that of uniform")]
    wanted = dict(preference)
    rows: list[list[Any]] = []
    for method in summary.methods:
        cells = [c for c in summary.of(method, preference) if c.retrained]
        for mix in (UNIFORM, LEARNED, TRUE):
            runs = [(c.retrained or {}) for c in cells if mix in (c.retrained or {})]
            if not runs or (mix != LEARNED and method != summary.methods[0]):
                continue
            values = [chebyshev(run[mix], wanted) for run in runs]
            gains = [
                v - chebyshev(run[UNIFORM], wanted) for v, run in zip(values, runs, strict=True)
            ]
            row: list[Any] = [method if mix == LEARNED else "", mix]
            row += [f"{Spread.of([run[mix][n] for run in runs]):.3f}" for n in summary.criteria]
            row.append(f"{Spread.of(values):.4f}")
            row.append("" if mix == UNIFORM else _gain(gains))
            rows.append(row)
    if not rows:
        return []
    return [
        "Training anew, with a fresh adapter and all else equal, on sets of these weights (losses "
        "on rows that no training saw; differences are paired by seed, ± their standard error):",
        Table(columns, rows).to_markdown(),
    ]


def _gain(gains: Sequence[float]) -> str:
    spread = Spread.of(gains)
    assert spread is not None
    if spread.deviation is None:
        return f"{spread.mean:+.4f}"
    return f"{spread.mean:+.4f} ± {spread.standard_error:.4f}"


def _monotone(summary: MixtureSummary, name: str, criterion: str) -> list[str]:
    """Whether the set that is good for a criterion gains as that one's preference does."""
    lines = []
    points = sorted(summary.preferences, key=lambda point: point[criterion])
    for method in summary.methods:
        seeds = {cell.seed for cell in summary.done if cell.method == method}
        rising, counted = 0, 0
        for seed in sorted(seeds):
            weights = [
                c.weights[name]
                for point in points
                for c in summary.of(method, point)
                if c.seed == seed and c.weights
            ]
            if len(weights) == len(points):
                counted += 1
                rising += all(a <= b for a, b in pairwise(weights))
        if counted:
            lines.append(
                f"{method}: the weight of {markdown_text(name)} rises with the preference for "
                f"{markdown_text(criterion)} throughout for {rising} of {counted} seeds."
            )
    return ["## The conflicted set", *lines] if lines else []


def _cost(summary: MixtureSummary) -> list[str]:
    columns = [left("method"), *numbers(["cells", "failed", "steps"])]
    columns += [Column("seconds", ".0f"), Column("tokens", ".0f")]
    rows: list[list[Any]] = []
    for method in dict.fromkeys(cell.method for cell in summary.cells):
        cells = [cell for cell in summary.done if cell.method == method]
        row: list[Any] = [method, len(cells)]
        row.append(sum(cell.method == method for cell in summary.failed))
        if cells:
            row += [float(np.mean([getattr(c, k) for c in cells])) for k in ("steps", "seconds")]
            tokens = [c.tokens for c in cells if c.tokens]
            row.append(float(np.mean(tokens)) if tokens else "not counted")
        else:
            row += ["", "", ""]
        rows.append(row)
    table = Table(columns, rows).to_markdown()
    return ["## What it took", "Means over cells, wall-clock; training anew is left out.", table]


def mixture_yaml(recipe: MixtureRecipe, summary: MixtureSummary) -> dict[str, str]:
    """Files for other programs: ``mixture.yaml``, or one a preference where there are several."""
    task = recipe.task
    if not isinstance(task, SetsTask):
        return {}
    method = summary.methods[0]
    files = {}
    for preference in summary.preferences:
        cells = summary.of(method, preference)
        if not cells:
            continue
        weights = {
            name: float(np.mean([c.weights[name] for c in cells if c.weights]))
            for name in summary.sets
        }
        several = len(summary.preferences) > 1
        name = f"mixture-{preference.slug()}.yaml" if several else "mixture.yaml"
        files[name] = _HEAD + yaml_syntax.dump(_sections(task.sets, weights))
    return files


_HEAD = """# weights: the share of training steps (of responses) that each set should have.
# What other programs read, each with a shape of its own:
#   dataset_mixer: alignment-handbook and scripts on TRL, the share of each set's rows to take once
#   axolotl: the same as `weight`; give each data set the `type` that its rows have
#   llama_factory: sampling probabilities; the names must be those in dataset_info.json
"""


def _sections(paths: Mapping[str, str], weights: Mapping[str, float]) -> dict[str, Any]:
    rounded = {name: round(weight, 4) for name, weight in weights.items()}
    found: dict[str, Any] = {"weights": rounded}
    sizes = {name: _rows(Path(path)) for name, path in paths.items()}
    if all(sizes.values()):
        # The largest shares of rows that have the weights' proportions without any row twice.
        per_row = {name: weights[name] / (sizes[name] or 1) for name in weights}
        most = max(per_row.values())
        shares = {name: max(round(value / most, 4), 0.0001) for name, value in per_row.items()}
        found["dataset_mixer"] = {paths[name]: share for name, share in shares.items()}
        found["axolotl"] = {
            "datasets": [{"path": paths[n], "weight": share} for n, share in shares.items()]
        }
    found["llama_factory"] = {
        "dataset": ",".join(weights),
        "mix_strategy": "interleave_under",
        "interleave_probs": ",".join(f"{weight:.4f}" for weight in weights.values()),
    }
    return found


def _rows(path: Path) -> int | None:
    """How many rows a local file has; None for what is none."""
    if not path.is_file():
        return None
    if path.suffix == ".jsonl":
        return sum(1 for _ in read_jsonl(path))
    if path.suffix == ".json":
        found = json.loads(path.read_text())
        return len(found) if isinstance(found, list) else None
    return None
