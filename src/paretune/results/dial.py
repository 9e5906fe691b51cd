"""What was measured along the gate of an adapter that serves every preference."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from paretune.files import write_json
from paretune.moo.calibration import Calibration
from paretune.moo.indicators import hypervolume, in_order, unevenness
from paretune.moo.preference import das_dennis
from paretune.results.front import FrontPoint, read_as
from paretune.results.gates import read_calibration
from paretune.results.weights import GATES

DIAL = "dial.json"


@dataclass(frozen=True)
class DialPoint:
    """One position of a gate.

    Attributes:
        preference: weight of each objective.
        position: where the gate is: at `preference` itself, or where the calibration has it.
        calibrated: which of these.
        losses: mean loss of each objective on the test split.
        validation: the same on the validation split; empty where it was not measured.
    """

    preference: dict[str, float]
    position: dict[str, float]
    calibrated: bool
    losses: dict[str, float]
    validation: dict[str, float] = field(default_factory=dict)

    @property
    def chebyshev(self) -> float:
        """max_m p_m f^m on the test split."""
        return max(p * self.losses[name] for name, p in self.preference.items() if p > 0)


@dataclass(frozen=True)
class DialPoints:
    """What was measured: raw positions at the points' preferences, calibrated ones on a grid."""

    points: tuple[DialPoint, ...]

    def of(self, calibrated: bool) -> tuple[DialPoint, ...]:
        """The points of one kind, in order."""
        return tuple(point for point in self.points if point.calibrated is calibrated)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "DialPoints":
        """Raises ValueError for anything else than this as a mapping."""
        return TypeAdapter(cls).validate_python(value)

    def write(self, folder: Path) -> None:
        write_json(folder / DIAL, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "DialPoints | None":
        """What `write` wrote to a folder; None if there is nothing.

        Raises:
            InputError: the file is damaged.
        """
        return read_as(cls, folder / DIAL) if (folder / DIAL).is_file() else None


def dial_folder(run: Path, trainings: Sequence[Mapping[str, Any]]) -> Path | None:
    """The gated adapter of which the points with these trainings were folded, if they were."""
    for training in trainings:
        if "position" in training:
            for key in training.get("shared", ()):
                if (run / "shared" / key / GATES).is_file():
                    return run / "shared" / str(key)
    return None


def points_calibration(
    run: Path, points: Sequence[FrontPoint], objectives: Sequence[str]
) -> Calibration | None:
    """What p means on the adapter of which a run's points were folded (the first seed's).

    Raises:
        InputError: its gate is damaged, or is of other objectives.
    """
    folder = dial_folder(run, [point.training for point in points])
    if folder is None:
        return None
    return read_calibration(folder, objectives)


@dataclass(frozen=True)
class DialRow:
    """What a preference gives: where the gate is put, and the losses that are expected there."""

    preference: tuple[float, ...]
    position: tuple[float, ...]
    losses: tuple[float, ...]


def dial_rows(
    calibration: Calibration, preferences: Iterable[Sequence[float]]
) -> tuple[DialRow, ...]:
    """What these preferences give, by the calibration: losses are of the validation split."""
    rows = []
    for preference in preferences:
        position = calibration.position(preference)
        losses = calibration.losses_at(position).tolist()
        rows.append(DialRow(tuple(preference), position, tuple(losses)))
    return tuple(rows)


def dial_grid(n_objectives: int, most: int = 9) -> list[tuple[float, ...]]:
    """The finest Das-Dennis grid of no more than `most` preferences, but ends and middles of edges.

    >>> dial_grid(2, 5)
    [(0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)]
    """
    divisions = 2
    while math.comb(divisions + n_objectives, n_objectives - 1) <= most:
        divisions += 1
    return das_dennis(n_objectives, divisions)


@dataclass(frozen=True)
class Spacing:
    """How a method's points lie with one seed: at p itself, and where its calibration has p.

    Attributes:
        at_p: hypervolume of the points at p itself; a gate that is not calibrated.
        calibrated: hypervolume of the calibrated grid; None without a dial.
        chebyshev: mean over the points at p itself of max_m p_m f^m.
        unevenness: on the test split, of the calibrated grid or, without a dial, of the points;
            see `paretune.moo.indicators.unevenness`. None but for two objectives and three points.
        validation_unevenness: of the calibrated grid on the validation split.
        in_order: how many steps of these points are right, and how many there are; see
            `paretune.moo.indicators.in_order`.
    """

    at_p: float
    calibrated: float | None
    chebyshev: float
    unevenness: float | None
    validation_unevenness: float | None
    in_order: tuple[int, int]

    @classmethod
    def of(
        cls,
        points: Sequence[FrontPoint],
        dial: DialPoints | None,
        reference: Sequence[float],
    ) -> "Spacing | None":
        """Of a method's points with one seed; None without any with finite losses."""
        raw: Sequence[FrontPoint | DialPoint] = points if dial is None else dial.of(False)
        path: Sequence[FrontPoint | DialPoint] = points if dial is None else dial.of(True)
        raw, path = (_finite(each) for each in (raw, path))
        if not raw or not path:
            return None
        weights, losses = _array([p.preference for p in path]), _array([p.losses for p in path])
        order = np.argsort(weights[:, 0], kind="stable")
        checked = [p.validation for p in path if isinstance(p, DialPoint)]
        return cls(
            at_p=hypervolume(_array([p.losses for p in raw]), reference).value,
            calibrated=None if dial is None else hypervolume(losses, reference).value,
            chebyshev=math.fsum(p.chebyshev for p in raw) / len(raw),
            unevenness=_unevenness(losses[order]),
            validation_unevenness=_unevenness(_array(checked)[order]) if checked else None,
            in_order=in_order(weights, losses),
        )


def _finite(points: Sequence[Any]) -> list[Any]:
    return [point for point in points if all(map(math.isfinite, point.losses.values()))]


def _unevenness(path: NDArray[np.float64]) -> float | None:
    return unevenness(path) if path.shape[1] == 2 and len(path) >= 3 else None


def _array(values: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    """Values by objective as an array (n, M)."""
    return np.array([list(each.values()) for each in values], dtype=np.float64)
