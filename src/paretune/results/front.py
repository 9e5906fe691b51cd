"""A front as data: points, their preferences and metrics, and what can be said of them together."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from paretune.errors import InputError, validation_problem
from paretune.files import read_json, read_objects, write_json
from paretune.names import shown
from paretune.results.spread import Spread
from paretune.results.text_statistics import TextStatistics, text_statistics

T = TypeVar("T")


@dataclass(frozen=True)
class ObjectiveMetrics:
    """One objective on a split: mean loss, share of pairs ranked right, mean reward margin.

    `perplexity` is of the tokens of the chosen responses; None where it was not measured.
    """

    loss: float
    accuracy: float
    margin: float
    perplexity: float | None = None


@dataclass(frozen=True)
class Score:
    """A scorer's mean over generated answers, with its standard error."""

    mean: float
    standard_error: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Mean and standard error of at least one value; the error of one value is NaN."""
        spread = Spread.of(values)
        if spread is None or spread.count < len(values):
            return cls(math.nan, math.nan, len(values))
        return cls(spread.mean, spread.standard_error, spread.count)


@dataclass(frozen=True)
class FrontPoint:
    """One trained model and how it does.

    Attributes:
        preference: weight of each objective.
        metrics: per objective, on the front's split.
        chebyshev: max_m p_m f^m on that split, over the objectives with p_m > 0.
        seed: of the training run.
        folder: where the adapter is, below the run folder.
        scores: per scorer of generated answers, where the data has scorers.
        answer_tokens: mean length of the generated answers; None where there are none.
        text: statistics of the generated answers as texts; None where there are none.
        training: what the run took (steps, seconds, tokens) and the share of steps with λ* at a
            vertex.
        nondominated: no other point of the front is as good in every loss and better in one;
            set by `Front.of`.
    """

    preference: dict[str, float]
    metrics: dict[str, ObjectiveMetrics]
    chebyshev: float
    seed: int = 0
    folder: str = ""
    scores: dict[str, Score] = field(default_factory=dict)
    answer_tokens: float | None = None
    text: TextStatistics | None = None
    training: dict[str, Any] = field(default_factory=dict)
    nondominated: bool = True

    @property
    def losses(self) -> dict[str, float]:
        return {name: metrics.loss for name, metrics in self.metrics.items()}

    @property
    def skipped_steps(self) -> int:
        """Training steps left out, since a loss or gradient was NaN or infinite."""
        return int(self.training.get("skipped_steps") or 0)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __post_init__(self) -> None:
        parts = re.split(r"[/\\]", self.folder)
        if ".." in parts or (self.folder and not parts[0]) or ":" in parts[0]:
            raise InputError(f"The folder {shown(self.folder)} of a point leads out of its run.")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What `to_json` made.

        Raises:
            ValueError: it is not that.
        """
        return TypeAdapter(cls).validate_python(value)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The point in a ``metrics.json``.

        Raises:
            InputError: the file is damaged.
        """
        return read_as(cls, path)


@dataclass(frozen=True)
class Front:
    """The points of one run, in the recipe's order.

    Attributes:
        name: of the recipe.
        method: how the points were trained (``"clamp"``, ``"linear"``, ...).
        split: the part of the data that the metrics are of.
        objectives: names, in the order of the coordinates of `reference_point`.
        points: in the recipe's order.
        reference_point: corner that bounds the dominated region, one loss an objective.
        hypervolume: volume of the losses that some point dominates and that dominate
            `reference_point`; larger is better, and only volumes of one reference compare.
    """

    name: str
    method: str
    split: str
    objectives: tuple[str, ...]
    points: tuple[FrontPoint, ...]
    reference_point: tuple[float, ...]
    hypervolume: float

    @classmethod
    def of(
        cls,
        points: Iterable[FrontPoint],
        *,
        name: str,
        method: str,
        split: str = "test",
        reference_point: Sequence[float] | None = None,
    ) -> Self:
        """The front of `points`: marks the non-dominated ones and computes the hypervolume.

        Points with a loss that is not finite are kept, dominated, and count for nothing.

        Args:
            reference_point: one loss an objective; by default that of
                `paretune.moo.indicators.default_reference`.

        Raises:
            InputError: no points, none with finite losses, points of different objectives, or a
                reference point of the wrong length.
        """
        import numpy as np

        from paretune.moo.indicators import hypervolume, nondominated

        points = tuple(points)
        if not points:
            raise InputError("A front needs at least one point.")
        objectives = tuple(points[0].metrics)
        if any(tuple(point.metrics) != objectives for point in points):
            raise InputError("All points of a front must have the same objectives.")
        losses = np.array([list(point.losses.values()) for point in points], dtype=np.float64)
        finite = np.isfinite(losses).all(axis=1)
        if not finite.any():
            raise InputError("No point of the front has finite losses: lower the learning rate.")
        flags = np.zeros(len(points), dtype=bool)
        flags[finite] = nondominated(losses[finite])
        volume = hypervolume(losses[finite], reference_point)
        return cls(
            name=name,
            method=method,
            split=split,
            objectives=objectives,
            points=tuple(
                replace(point, nondominated=bool(flag))
                for point, flag in zip(points, flags, strict=True)
            ),
            reference_point=volume.reference,
            hypervolume=volume.value,
        )

    def to_pandas(self) -> Any:
        """A data frame with a row for each point: p, seed, metrics, scores, folder."""
        from pandas import DataFrame  # type: ignore[import-untyped]

        from paretune.results.notebook import front_rows

        return DataFrame(front_rows(self))

    def plot(self, axes: Any = None) -> Any:
        """Draw the losses, on given axes of matplotlib or new ones, which are returned."""
        from paretune.results.notebook import draw

        return draw(self, axes)

    def _repr_html_(self) -> str:
        from paretune.results.notebook import front_html

        return front_html(self)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "points": [point.to_json() for point in self.points]}

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            InputError: the file is not a front.
        """
        return read_as(cls, path)


def read_as(kind: type[T], path: Path) -> T:
    """The dataclass that a JSON file holds.

    Raises:
        InputError: the file is damaged, or holds something else.
    """
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"'{path}' is damaged or of another version ({f'{key}: ' if key else ''}"
            f"{validation_problem(first)}): delete it and run the command again."
        ) from error


ANSWERS = "answers.jsonl"


def read_point(folder: Path) -> FrontPoint:
    """The finished point in `folder`, from its ``metrics.json``."""
    return _complete(FrontPoint.read(folder / "metrics.json"), folder)


def read_front(run: Path) -> Front:
    """The front of a run folder, from its ``front.json``.

    Raises:
        InputError: the file is not a front.
    """
    front = Front.read(run / "front.json")
    points = tuple(_complete(point, run / point.folder) for point in front.points)
    return replace(front, points=points)


def _complete(point: FrontPoint, folder: Path) -> FrontPoint:
    """With the statistics of its texts: points of before there were some have their answers."""
    path = folder / ANSWERS
    if point.text is not None or not path.exists():
        return point
    try:
        rows = read_objects(path)
        return replace(point, text=text_statistics((r["response"], r["finished"]) for r in rows))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"'{path}' is damaged ({error}): delete it and the metrics.json beside it, and run "
            "the command again."
        ) from error
