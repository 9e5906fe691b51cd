"""One method of a comparison with one seed: what is left of it, and doing that.

Its folder is ``cells/<method>-seed<n>``; what it shares with other methods is in ``shared/``.
"""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.claims import LostClaimError
from paretune.errors import InputError, UntrainedError
from paretune.files import (
    main_process,
    read_object,
    several_processes,
    storage_problem,
    write_json,
    write_text,
)
from paretune.moo.weightings import ClampOptions, Linear
from paretune.progress import Phase, Progress, Report
from paretune.recipes.schema import Recipe
from paretune.recipes.written import differences
from paretune.results.dial import DialPoints, dial_folder
from paretune.results.points import PlannedPoint
from paretune.results.weights import TRAINING
from paretune.runs.dial import measure_dial
from paretune.runs.plan import plan

if TYPE_CHECKING:
    from paretune.baselines.context import Context
    from paretune.baselines.recipe import CompareRecipe, Entry
    from paretune.data import PreferenceData


@dataclass(frozen=True)
class Task:
    """One method with one seed, still to be done or not."""

    entry: "Entry"
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.entry.title}, seed {self.seed}"

    @property
    def points(self) -> list[PlannedPoint]:
        return plan(self.recipe, self.folder)

    @property
    def own_training(self) -> bool:
        """Whether the method trains by itself, not as a weighting of a sweep."""
        return not self.entry.is_weighting

    @property
    def pending(self) -> list[PlannedPoint]:
        return [point for point in self.points if not is_measured(point.folder(self.folder))]

    @property
    def dial(self) -> Path | None:
        """The gated adapter of which all its points were folded, once they were."""
        points = [point.folder(self.folder) / TRAINING for point in self.points]
        if not all(path.exists() for path in points):
            return None
        return dial_folder(self.folder.parents[1], [read_object(path) for path in points])

    @property
    def unmeasured_dial(self) -> Path | None:
        """That adapter, if the preferences of its points were not measured along its gate."""
        measured = DialPoints.read(self.folder)
        wanted = {point.preference.weights for point in self.points}
        if measured is not None and wanted <= {
            tuple(point.preference.values()) for point in measured.of(False)
        }:
            return None
        return self.dial

    @property
    def unfinished(self) -> bool:
        return bool(self.pending) or self.unmeasured_dial is not None

    @property
    def settings(self) -> dict[str, Any]:
        """What the method's results depend on beside the recipe."""
        return {
            "method": self.entry.name,
            "options": self.entry.settings,
            "range_normalised": self.entry.range_normalised,
            **({"train": self.entry.train} if self.entry.train else {}),
        }


def all_tasks(recipe: "CompareRecipe", run: Path) -> list[Task]:
    """Every method of a recipe with each of its seeds."""
    tasks = []
    for entry in recipe.methods:
        parsed = entry.parsed
        for seed in entry.seeds or recipe.sweep.seeds:
            fields = {name: getattr(recipe, name) for name in Recipe.model_fields}
            points = entry.preferences or recipe.sweep.preferences
            sweep = {"seeds": [seed], "preferences": points}
            fields["sweep"] = recipe.sweep.model_copy(update=sweep)
            fields["train"] = recipe.train | entry.train
            fields["method"] = parsed if entry.is_weighting else Linear()
            folder = run / "cells" / f"{entry.slug}-seed{seed}"
            one = Recipe(**fields)
            one._source = recipe.source
            tasks.append(Task(entry, seed, one, folder))
    return tasks


def check_train(task: Task) -> None:
    """See that the arguments of a method's training can be made.

    Raises:
        InputError: naming the method.
    """
    from paretune.experiment.setup import training_arguments

    if not task.entry.train:
        return  # the recipe's own, which are checked with it
    try:
        training_arguments(task.recipe, task.points[0].preference, task.seed, task.folder)
    except InputError as error:
        raise InputError(f"{task.entry.title}: {error}") from None


def step_names(task: Task) -> list[str]:
    """What progress is told of, by name."""
    before = []
    if task.own_training:
        before = [f"{task.name}: training"]
    elif task.entry.range_normalised:
        before = [f"{task.name}: ranges"]
    after = [f"{task.name}: dial"] if task.own_training and task.entry.parsed.steerable else []
    return [*before, *(f"{task.name}, {point.name}" for point in task.points), *after]


def run_task(
    task: Task, run: Path, splits: "Mapping[Any, PreferenceData]", progress: Progress
) -> str | None:
    """Do what is left of a method with one seed; why it failed, or None."""
    from paretune.experiment.train_point import free_memory, told, wait_for_all

    failure, stopped = None, False
    shared: list[str] = []
    try:
        _claim_cell(task)
        if task.own_training:
            progress.point(f"{task.name}: training")
            _train(task, _context(task, run, splits, progress))
        elif task.entry.range_normalised:
            progress.point(f"{task.name}: ranges")
            task, shared = _with_ranges(task, _context(task, run, splits, progress))
    except Exception as error:
        failure, stopped = _describe(error, task.folder), True
    free_memory()
    for point in told(task.pending):
        folder = point.folder(task.folder)
        if stopped and not (folder / "training.json").exists():
            continue
        progress.point(f"{task.name}, {point.name}")
        try:
            _run_point(task, point, folder, splits, progress.phase, shared)
        except Exception as error:
            stopped |= not isinstance(error, UntrainedError)
            failure = failure or _describe(error, task.folder)
        free_memory()
    wait_for_all()
    if failure is None and (dial := told(task.unmeasured_dial)) is not None:
        progress.point(f"{task.name}: dial")
        try:
            wanted = [point.preference for point in task.points]
            measure_dial(task.recipe, wanted, dial, task.folder, splits, progress.phase)
        except Exception as error:
            failure = _describe(error, task.folder)
        free_memory()
    if failure is None and main_process():
        (task.folder / "failure.txt").unlink(missing_ok=True)
    return failure


def _context(
    task: Task, run: Path, splits: "Mapping[Any, PreferenceData]", progress: Progress
) -> "Context":
    from paretune.baselines.context import Context

    def report(phase: Phase, done: float) -> None:
        # A method may prepare several trainings; progress reckons with one preparation a step.
        progress.phase("train" if phase == "prepare" else phase, done)

    seen = {name: data for name, data in splits.items() if name != "test"}
    return Context(task.recipe, seen, task.seed, task.folder, run / "shared", report)


def _with_ranges(task: Task, context: "Context") -> tuple[Task, list[str]]:
    """The task with the objectives' ranges as ideal and nadir point, and the keys of adapters."""
    from paretune.baselines.single_objective import loss_range, single_objective

    keys = {name: single_objective(context, name) for name in task.recipe.data.objectives}
    ranges = {name: loss_range(context.shared / key, name) for name, key in keys.items()}
    ideal, nadir = ({name: pair[i] for name, pair in ranges.items()} for i in (0, 1))
    assert isinstance(task.recipe.method, ClampOptions)
    method = replace(task.recipe.method, ideal=ideal, nadir=nadir)
    recipe = task.recipe.model_copy(update={"method": method})
    return replace(task, recipe=recipe), list(keys.values())


def _train(task: Task, context: "Context") -> None:
    context.report("train", 0.0)
    task.entry.parsed.train(context, [point.preference for point in task.points])


def _run_point(
    task: Task,
    point: PlannedPoint,
    folder: Path,
    splits: "Mapping[Any, PreferenceData]",
    report: Report,
    shared: Sequence[str],
) -> None:
    from paretune.baselines.score_prompts import ScorePrompt
    from paretune.runs.point import measure_point, run_point

    if not task.own_training:
        run_point(task.recipe, point, folder, splits, report=report, shared=shared)
        return
    measure_point(
        task.recipe,
        point,
        folder,
        folder,
        splits["test"],
        report,
        asked=ScorePrompt.of(folder),
    )


def _claim_cell(task: Task) -> None:
    """See that what the method has left was made with the same options."""
    path = task.folder / "method.json"
    if path.exists():
        saved = read_object(path)
        options = task.entry.earlier(saved.get("options", {}))
        found = differences(task.settings, {**saved, "options": options})
        if found:
            raise InputError(
                f"'{task.folder}' holds results of '{task.entry.title}' with other options "
                f"({found[0]}): give the method another label, or delete that folder."
            )
    if main_process():
        write_json(path, task.settings)


def _describe(error: Exception, folder: Path) -> str:
    """The error in one line; its traceback goes to the folder.

    Raises:
        Exception: The error itself, where every other method would fail in the same way.
    """
    if storage_problem(error) or isinstance(error, LostClaimError):
        raise error
    if several_processes() and not isinstance(error, UntrainedError):
        raise error  # the others may wait for this one
    if main_process():
        write_text(folder / "failure.txt", "".join(traceback.format_exception(error)))
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def is_measured(folder: Path) -> bool:
    """Whether a folder's model, the base or a point, was measured."""
    return (folder / "metrics.json").exists()
