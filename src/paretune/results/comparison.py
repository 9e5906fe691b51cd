"""A comparison as data: the cells of every method, and what can be said of them together."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from paretune.moo.indicators import epsilon_additive, hypervolume
from paretune.results.dial import DialPoints, Spacing
from paretune.results.front import FrontPoint
from paretune.results.spread import Spread
from paretune.spend import Spend


@dataclass(frozen=True)
class Cell:
    """A method with one seed.

    Attributes:
        title: what the method is called.
        method: which it is.
        options: its settings.
        points: those that are trained and measured, in the recipe's order.
        missing: preferences (as slugs) that have no result.
        failure: why, in a sentence; None if nothing failed.
        hypervolume: of its points, below the comparison's reference point; None without points.
        dial: what was measured along its gate, if it is one adapter for every preference.
    """

    title: str
    method: str
    options: dict[str, Any]
    seed: int
    points: tuple[FrontPoint, ...]
    missing: tuple[str, ...] = ()
    failure: str | None = None
    hypervolume: float | None = None
    dial: DialPoints | None = None

    @property
    def losses(self) -> NDArray[np.float64]:
        """The finite points' losses, (n, M)."""
        rows = [list(point.losses.values()) for point in self.points]
        return np.array([row for row in rows if all(map(math.isfinite, row))], dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        points = [point.to_json() for point in self.points]
        dial = None if self.dial is None else asdict(self.dial)
        return {**vars(self), "points": points, "dial": dial}


@dataclass(frozen=True)
class Cost:
    """What a method takes, means over its points: for a point itself, and besides for one p.

    Attributes:
        point: of training the point, once everything shared is there.
        shared: of what else the point needed: adapters, margins, reward models.
        front: of all points of one seed together, what they share counted once.
    """

    point: Spend
    shared: Spend
    front: Spend

    def to_json(self) -> dict[str, Any]:
        return {name: value.to_json() for name, value in vars(self).items()}


@dataclass(frozen=True)
class Comparison:
    """All methods of a recipe, measured by the same code on the same data.

    Attributes:
        base: the model before any training, with the same metrics.
        cells: method by method, seed by seed.
        shared: what the things that several methods use took, by key.
        reference_point: one loss an objective, the same for every hypervolume.
        epsilon: ``epsilon[a][b]``: the least that must be added to every loss of b's points for
            a's points to be as good, mean over the seeds that both have; negative if a is better.
    """

    name: str
    objectives: tuple[str, ...]
    base: FrontPoint | None
    cells: tuple[Cell, ...]
    shared: dict[str, Spend]
    reference_point: tuple[float, ...] | None
    epsilon: dict[str, dict[str, float]]

    @classmethod
    def of(
        cls,
        cells: Iterable[Cell],
        *,
        name: str,
        objectives: Sequence[str],
        base: FrontPoint | None,
        shared: Mapping[str, Spend],
        reference_point: Sequence[float] | None = None,
    ) -> Self:
        """The comparison of `cells`.

        Args:
            reference_point: by default a tenth of their range beyond the worst losses of all
                points of all methods, so that every point counts.
        """
        cells = tuple(cells)
        losses = [cell.losses for cell in cells if len(cell.losses)]
        losses += [
            np.array([list(point.losses.values())])
            for cell in cells
            for point in (cell.dial.points if cell.dial else ())
            if all(map(math.isfinite, point.losses.values()))
        ]
        if losses and reference_point is None:
            everything = np.concatenate(losses)
            worst, best = everything.max(axis=0), everything.min(axis=0)
            reference_point = [float(value) for value in worst + 0.1 * (worst - best)]
        if reference_point is not None:
            cells = tuple(
                replace(cell, hypervolume=hypervolume(cell.losses, reference_point).value)
                if len(cell.losses)
                else cell
                for cell in cells
            )
        return cls(
            name=name,
            objectives=tuple(objectives),
            base=base,
            cells=cells,
            shared=dict(shared),
            reference_point=None if reference_point is None else tuple(reference_point),
            epsilon=_epsilons(cells),
        )

    @property
    def titles(self) -> list[str]:
        """The methods, in order."""
        return list(dict.fromkeys(cell.title for cell in self.cells))

    @property
    def failures(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.failure is not None]

    def of_title(self, title: str) -> list[Cell]:
        """A method's cells, one a seed."""
        return [cell for cell in self.cells if cell.title == title]

    def by_preference(self, title: str) -> list[list[FrontPoint]]:
        """A method's points, those of different seeds together."""
        groups: dict[tuple[float, ...], list[FrontPoint]] = {}
        for cell in self.of_title(title):
            for point in cell.points:
                groups.setdefault(tuple(point.preference.values()), []).append(point)
        return list(groups.values())

    def hypervolume(self, title: str) -> Spread | None:
        """A method's, over its seeds; None if it has no point."""
        return Spread.of(cell.hypervolume for cell in self.of_title(title))

    def spacing(self, title: str) -> list[Spacing]:
        """How a method's points lie, for each of its seeds that has some."""
        if self.reference_point is None:
            return []
        cells = self.of_title(title)
        found = [Spacing.of(cell.points, cell.dial, self.reference_point) for cell in cells]
        return [spacing for spacing in found if spacing is not None]

    def done(self, title: str) -> str:
        """How many of a method's points there are: ``"5 of 7"``."""
        cells = self.of_title(title)
        done = sum(len(cell.points) for cell in cells)
        return f"{done} of {done + sum(len(cell.missing) for cell in cells)}"

    def cost(self, title: str) -> Cost | None:
        """What a method took; None if it has no point."""
        cells = [cell for cell in self.of_title(title) if cell.points]
        if not cells:
            return None
        points = [point for cell in cells for point in cell.points]
        return Cost(
            point=_mean([_spend(point) for point in points]),
            shared=_mean([self._shared([point]) for point in points]),
            front=_mean(
                [sum(map(_spend, cell.points), self._shared(cell.points)) for cell in cells]
            ),
        )

    def _shared(self, points: Iterable[FrontPoint]) -> Spend:
        keys = {key for point in points for key in point.training.get("shared", [])}
        return sum((self.shared[key] for key in sorted(keys)), Spend())

    def to_json(self) -> dict[str, Any]:
        """Everything, with a summary of each method over its seeds."""
        summary = {}
        for title in self.titles:
            cost, volume = self.cost(title), self.hypervolume(title)
            summary[title] = {
                "hypervolume": None
                if volume is None
                else {"mean": volume.mean, "deviation": volume.deviation, "seeds": volume.count},
                "spacing": [asdict(spacing) for spacing in self.spacing(title)],
                "cost": None if cost is None else cost.to_json(),
            }
        return {
            "name": self.name,
            "objectives": list(self.objectives),
            "reference_point": self.reference_point,
            "base": None if self.base is None else self.base.to_json(),
            "summary": summary,
            "epsilon": self.epsilon,
            "shared": {key: spend.to_json() for key, spend in self.shared.items()},
            "cells": [cell.to_json() for cell in self.cells],
        }


def _spend(point: FrontPoint) -> Spend:
    return Spend.from_json(point.training["spend"])


def _mean(spends: Sequence[Spend]) -> Spend:
    total, n = sum(spends, Spend()), len(spends)
    counts = total.to_json()
    for name, value in counts.items():
        if name == "seconds":
            counts[name] = value / n
        elif name != "peak_memory_bytes":
            counts[name] = round(value / n)
    return Spend.from_json(counts)


def _epsilons(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    by_title: dict[str, dict[int, Cell]] = {}
    for cell in cells:
        if len(cell.losses):
            by_title.setdefault(cell.title, {})[cell.seed] = cell
    table: dict[str, dict[str, float]] = {}
    for method, own in by_title.items():
        for other, theirs in by_title.items():
            seeds = sorted(own.keys() & theirs.keys())
            if method != other and seeds:
                values = [epsilon_additive(own[seed].losses, theirs[seed].losses) for seed in seeds]
                table.setdefault(method, {})[other] = math.fsum(values) / len(values)
    return table
