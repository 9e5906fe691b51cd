"""Run folders as a report needs them: read, checked, and not changed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from paretune import yaml_syntax
from paretune.errors import InputError, NothingToShowError
from paretune.files import read_object, read_objects
from paretune.moo.calibration import Calibration
from paretune.names import shown
from paretune.results.comparison import Cell, Comparison
from paretune.results.dial import DialPoints, points_calibration
from paretune.results.front import Front, FrontPoint, read_front, read_point
from paretune.results.points import measured_comparison, measured_sweep
from paretune.spend import Spend

MANIFEST = "manifest.json"

BASE_FOLDER = "base"
"""Where a run keeps the base model's metrics and answers, if it measured them."""


@dataclass(frozen=True)
class Run:
    """One run folder, of a sweep or of a comparison.

    Attributes:
        path: the folder, as the user wrote it.
        series: the points of every method, under its name; their `folder` is below `path`.
        base: the untrained model's metrics, where the run measured them.
        front: of a sweep.
        comparison: of a comparison.
        recipe: the whole recipe; a plain mapping, so that a folder of another version is read too.
        recipe_text: the same as it stands in the file.
        manifest: versions, data counts and constants; empty if the folder has none.
    """

    path: Path
    name: str
    split: str
    objectives: tuple[str, ...]
    series: dict[str, tuple[FrontPoint, ...]]
    base: FrontPoint | None
    front: Front | None
    comparison: Comparison | None
    recipe: dict[str, Any]
    recipe_text: str
    manifest: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a folder that `paretune sweep` or `paretune compare` made, or is making.

        Raises:
            NothingToShowError: it has no results yet.
            InputError: it is no such folder, or a file of it is damaged.
        """
        saved = saved_recipe(path)
        text = yaml_syntax.read(saved, f"'{saved}'")
        recipe = yaml_syntax.parse(text, f"'{saved}'")
        if not isinstance(recipe, dict):
            raise InputError(f"'{saved}' is not a recipe: restore it.")
        front, comparison = _results(path, recipe)
        if comparison is not None:
            name, split = comparison.name, "test"
            objectives, base = comparison.objectives, comparison.base
            series = {
                title: tuple(p for cell in comparison.of_title(title) for p in cell.points)
                for title in comparison.titles
            }
        elif front is not None:
            name, split, objectives = front.name, front.split, front.objectives
            series, base = {front.method: front.points}, _measured_base(path)
        else:
            again = "compare" if "methods" in recipe else "sweep"
            raise NothingToShowError(
                f"'{path}' has no results yet: run `paretune {again} {saved}`."
            )
        return cls(
            path=path,
            name=name,
            split=split,
            objectives=objectives,
            series=series,
            base=base,
            front=front,
            comparison=comparison,
            recipe=recipe,
            recipe_text=text,
            manifest=read_manifest(path),
        )

    @property
    def points(self) -> Iterator[tuple[str, FrontPoint]]:
        """Every trained point with its method."""
        return ((title, point) for title, points in self.series.items() for point in points)

    @property
    def unfinished(self) -> str:
        """What of the plan is shown, and how to get the rest; empty if all points are measured."""
        done = sum(len(points) for points in self.series.values())
        plan = self.recipe.get("sweep") or {}
        if self.comparison is not None:
            command = "compare"
            missing: int | None = sum(len(cell.missing) for cell in self.comparison.cells)
        elif plan.get("preferences") is None:  # points placed one after the other
            command, missing = "sweep", 0 if (self.path / "front.json").is_file() else None
        else:
            command = "sweep"
            missing = len(plan["preferences"]) * len(plan.get("seeds") or [0]) - done
        if missing is not None and missing <= 0:
            return ""
        count = f"{done}" if missing is None else f"{done} of {done + missing}"
        again = f"run `paretune {command} {self.path / 'recipe.yaml'}` again"
        return f"Of '{self.path}' {count} points are shown: {again}."

    def calibration(self, title: str) -> Calibration | None:
        """What p means on the one adapter of a method's points; None where each has its own."""
        return points_calibration(self.path, self.series[title], self.objectives)

    def log(self, point: FrontPoint) -> list[dict[str, Any]]:
        """The training log of a point, one row a logged step; empty if there is none.

        Of a point that was folded from an adapter for all p it is that of the adapter.
        """
        folders = [self.path / point.folder]
        if "position" in point.training:
            folders += [self.path / "shared" / key for key in point.training.get("shared", ())]
        return next((rows for folder in folders if (rows := _rows(folder / "log.jsonl"))), [])

    def answers(self, point: FrontPoint) -> list[dict[str, Any]]:
        """A point's answers: prompt, response, finished, scores; empty if there are none."""
        return self._answers(point.folder)

    def base_answers(self) -> list[dict[str, Any]]:
        """The base model's answers; empty if there are none."""
        return self._answers(BASE_FOLDER)

    def _answers(self, folder: str) -> list[dict[str, Any]]:
        path = self.path / folder / "answers.jsonl"
        rows = _rows(path)
        if not all(map(_is_answer, rows)):
            raise InputError(
                f"'{path}' does not hold answers: delete it and run `paretune evaluate "
                f"{self.path}` again."
            )
        return rows


def saved_recipe(run: Path) -> Path:
    """The recipe in a run folder.

    Raises:
        InputError: there is no such folder, or it is not one of a run.
    """
    saved = run / "recipe.yaml"
    try:
        if saved.is_file():
            return saved
        there = run.is_dir()
    except (OSError, ValueError):  # too long a name, say
        there = False
    if not there:
        raise InputError(f"There is no folder {shown(str(run))}: give a run folder.")
    raise InputError(f"'{run}' is not a run folder: it has no recipe.yaml.")


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders that can be shown together.

    Raises:
        InputError: see `Run.read`; or the runs have different objectives or splits.
    """
    runs = [Run.read(path) for path in dict.fromkeys(paths)]
    for run in runs[1:]:
        for what in ("objectives", "split"):
            first, other = getattr(runs[0], what), getattr(run, what)
            if first != other:
                raise InputError(
                    f"'{runs[0].path}' and '{run.path}' have different {what} ({_words(first)}; "
                    f"{_words(other)}): report them one by one."
                )
    return runs


def read_manifest(run: Path) -> dict[str, Any]:
    """What a run's ``manifest.json`` holds; empty if there is none.

    Raises:
        InputError: the file is damaged.
    """
    path = run / MANIFEST
    if not path.is_file():
        return {}
    found = read_object(path)
    sessions = found.get("sessions", [])
    kinds = {"data": dict, "ground": dict, "normalisation": dict, "rewards": dict}
    if not all(isinstance(found.get(key, kind()), kind) for key, kind in kinds.items()) or not (
        isinstance(sessions, list) and all(isinstance(each, dict) for each in sessions)
    ):
        raise InputError(
            f"'{path}' is not a manifest of this version: delete it and run the command again."
        )
    return found


def begun(manifest: Mapping[str, Any]) -> str | None:
    """The day on which the first session of a run began, if its manifest says so."""
    sessions = manifest.get("sessions") or [{}]
    started = sessions[0].get("started")
    return started[:10] if isinstance(started, str) else None


def read_comparison(path: Path) -> Comparison:
    """The comparison in a ``compare.json``.

    Raises:
        InputError: the file is not one of this version.
    """
    value = read_object(path)
    try:
        base = value["base"]
        cells = [
            Cell(
                **{
                    **cell,
                    "points": tuple(FrontPoint.from_json(point) for point in cell["points"]),
                    "missing": tuple(cell["missing"]),
                    "dial": DialPoints.from_json(cell["dial"]) if cell.get("dial") else None,
                }
            )
            for cell in value["cells"]
        ]
        return Comparison.of(
            cells,
            name=value["name"],
            objectives=value["objectives"],
            base=None if base is None else FrontPoint.from_json(base),
            shared={key: Spend.from_json(spend) for key, spend in value["shared"].items()},
            reference_point=value["reference_point"],
        )
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"'{path}' does not hold a comparison of this version ({error}): run "
            f"`paretune compare {path.parent / 'recipe.yaml'}` again."
        ) from error


def _rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none if there is no such file."""
    return read_objects(path, nan=True) if path.is_file() else []


def _is_answer(row: Mapping[str, Any]) -> bool:
    """Whether a row has a prompt, text or messages, and a response, which is text."""
    prompt = row.get("prompt")
    messages = isinstance(prompt, list) and all(
        isinstance(each, dict) and {"role", "content"} <= each.keys() for each in prompt
    )
    return (isinstance(prompt, str) or messages) and isinstance(row.get("response"), str)


def point_slug(point: FrontPoint) -> str:
    """A point's folder as one file name: ``clamp-seed0_harmless0.80-helpful0.20``."""
    parts = [part for part in Path(point.folder).parts if part not in ("cells", "points")]
    return "_".join(parts)


def _results(path: Path, recipe: dict[str, Any]) -> tuple[Front | None, Comparison | None]:
    """What a run came to, or has come to by now; nothing if no point is measured."""
    if (path / "compare.json").is_file():
        return None, read_comparison(path / "compare.json")
    if (path / "front.json").is_file():
        return read_front(path), None
    if "task" in recipe:
        how = "is shown by its weigh.md and by `paretune tables`"
        if not (path / "weigh.json").is_file():
            how = f"is not finished: run `paretune weigh {path / 'recipe.yaml'}` again"
        raise InputError(f"'{path}' is a run of `paretune weigh` and {how}.")
    try:
        if "methods" in recipe:
            return None, measured_comparison(path, recipe)
        return measured_sweep(path, recipe), None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"'{path}' does not hold a run of this version ({error}): finish it with the version "
            "that began it."
        ) from error


def _measured_base(path: Path) -> FrontPoint | None:
    metrics = path / BASE_FOLDER / "metrics.json"
    if not metrics.is_file():
        return None
    return replace(read_point(path / BASE_FOLDER), folder=BASE_FOLDER)


def _words(value: str | Sequence[str] | Mapping[str, Any]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
