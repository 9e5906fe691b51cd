"""Running a comparison: every method on the same model, data, budget and metrics.

A run folder holds ``recipe.yaml``, ``manifest.json``, the base model's metrics in ``base/``, what
several methods use in ``shared/``, and in ``cells/<method>-seed<n>/points/`` what each method left;
``compare.json``, ``compare.md`` and pictures are made of these. What is finished is never done
again; a method that fails is reported, and the others are run all the same.
"""

import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.claims import LostClaimError
from paretune.errors import InputError, UntrainedError
from paretune.files import read_object, storage_problem, write_json, write_text
from paretune.moo.preference import Preference
from paretune.moo.weightings import ClampOptions, Linear
from paretune.progress import Phase, Progress, Report, Silent
from paretune.recipes.load import dated
from paretune.recipes.schema import Recipe
from paretune.recipes.written import differences
from paretune.results.comparison import Cell, Comparison
from paretune.results.dial import DialPoints, dial_folder
from paretune.results.front import FrontPoint, read_point
from paretune.results.points import PlannedPoint, read_spend
from paretune.results.weights import TRAINING
from paretune.runs.dial import measure_dial
from paretune.runs.folder import RecipeIdentity, RunFolder
from paretune.runs.plan import plan
from paretune.runs.preparation import (
    check_recipe,
    check_sampling,
    load_splits,
    note_left_out,
    note_skipped,
)

if TYPE_CHECKING:
    from paretune.baselines.context import Context
    from paretune.baselines.recipe import CompareRecipe, Entry
    from paretune.data import PreferenceData

_RESULTS = ("compare.json", "compare.md", "compare.png", "compare-scores.png")
_FILES = ("manifest.json", "recipe.yaml", "report.html", *_RESULTS)
_CONTENTS = ("cells", "shared", "base", "judge", "figures", *_FILES)
_MAY_DIFFER = ("methods", "sweep.seeds", "sweep.preferences")  # what is there already stays


@dataclass(frozen=True)
class _Task:
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
        return [point for point in self.points if not _measured(point.folder(self.folder))]

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


def compare_folder(recipe: "CompareRecipe") -> RunFolder:
    """The folder of a comparison."""
    return RunFolder(
        Path(recipe.output_dir),
        RecipeIdentity(recipe),
        contents=_CONTENTS,
        may_differ=_MAY_DIFFER,
        holds="a comparison of another recipe",
    )


def run_compare(
    recipe: "CompareRecipe", *, fresh: bool = False, progress: Progress | None = None
) -> Comparison:
    """Train and measure every method of a recipe at every point, as far as that is not done.

    Args:
        fresh: Delete what an earlier comparison left in the run folder.
        progress: Is told how it gets on.

    Returns:
        The comparison, also in ``compare.json``, ``compare.md`` and ``compare.png``; its
        `failures` say which methods could not be run, and why.

    Raises:
        InputError: the run folder belongs to another recipe, or recipe, model and data do not fit.
    """
    run, progress = Path(recipe.output_dir), progress or Silent()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "A comparison does not divide its trainings among processes: start it with plain "
            "`paretune compare ... --workers N`, which gives each process methods of its own."
        )
    folder = compare_folder(recipe)
    folder.check(fresh=fresh)
    tasks, failures, data = _tasks(recipe, run), dict[str, str](), None
    if fresh or not folder.finished("base") or any(task.unfinished for task in tasks):
        recipe.model.check_place()  # at once, and torch takes seconds
        for task in tasks:
            _check_train(task)
        data = check_recipe(recipe)  # before anything is written or deleted
        for task in tasks:
            if not task.own_training:
                check_sampling(task.recipe, data)
    with folder.shared_session(fresh=fresh):
        if not folder.finished("base") or any(task.unfinished for task in tasks):
            splits = load_splits(recipe, folder, data=data)
            recipe = dated(recipe, folder.started())
            tasks = _tasks(recipe, run)
            failures = _run_tasks(recipe, folder, tasks, splits, progress)
        comparison = _collect(recipe, run, tasks, failures)
        with folder.alone():
            _publish(comparison, folder)
        return comparison


def _run_tasks(
    recipe: "CompareRecipe",
    folder: RunFolder,
    tasks: Sequence[_Task],
    splits: "Mapping[Any, PreferenceData]",
    progress: Progress,
) -> dict[str, str]:
    """Do what is left of the base model and of every task; why those that failed did, by name."""
    cells = {str(task.folder.relative_to(folder.path)): task for task in tasks}
    steps = ["base model", *(name for task in tasks for name in _steps(task))]
    watched = folder.pieces.watched(progress)

    def do(name: str) -> str | None:
        if name in cells:
            return _run_task(cells[name], folder.path, splits, watched)
        _measure_base(recipe, folder.path, splits, watched)
        return None

    def finished(name: str) -> bool:
        return not cells[name].unfinished if name in cells else folder.finished(name)

    def steps_done() -> int:
        done = [len(_steps(task)) for task in tasks if not task.unfinished]
        return sum(done) + folder.finished("base")

    watched.begin(steps, steps_done())
    failed = folder.work(
        ["base", *cells], do, lambda: watched.finished(steps_done()), finished=finished
    )
    watched.end()
    if "base" in failed:
        raise InputError(f"The base model could not be measured: {failed['base']}")
    return {cells[name].name: why for name, why in failed.items()}


def _tasks(recipe: "CompareRecipe", run: Path) -> list[_Task]:
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
            tasks.append(_Task(entry, seed, one, folder))
    return tasks


def _check_train(task: _Task) -> None:
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


def _steps(task: _Task) -> list[str]:
    """What progress is told of, by name."""
    before = []
    if task.own_training:
        before = [f"{task.name}: training"]
    elif task.entry.range_normalised:
        before = [f"{task.name}: ranges"]
    after = [f"{task.name}: dial"] if task.own_training and task.entry.parsed.steerable else []
    return [*before, *(f"{task.name}, {point.name}" for point in task.points), *after]


def _run_task(
    task: _Task, run: Path, splits: "Mapping[Any, PreferenceData]", progress: Progress
) -> str | None:
    """Do what is left of a method with one seed; why it failed, or None."""
    from paretune.experiment.train_point import free_memory

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
    for point in task.pending:
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
    if failure is None and (dial := task.unmeasured_dial) is not None:
        progress.point(f"{task.name}: dial")
        try:
            wanted = [point.preference for point in task.points]
            measure_dial(task.recipe, wanted, dial, task.folder, splits, progress.phase)
        except Exception as error:
            failure = _describe(error, task.folder)
        free_memory()
    if failure is None:
        (task.folder / "failure.txt").unlink(missing_ok=True)
    return failure


def _context(
    task: _Task, run: Path, splits: "Mapping[Any, PreferenceData]", progress: Progress
) -> "Context":
    from paretune.baselines.context import Context

    def report(phase: Phase, done: float) -> None:
        # A method may prepare several trainings; progress reckons with one preparation a step.
        progress.phase("train" if phase == "prepare" else phase, done)

    seen = {name: data for name, data in splits.items() if name != "test"}
    return Context(task.recipe, seen, task.seed, task.folder, run / "shared", report)


def _with_ranges(task: _Task, context: "Context") -> tuple[_Task, list[str]]:
    """The task with the objectives' ranges as ideal and nadir point, and the keys of adapters."""
    from paretune.baselines.single_objective import loss_range, single_objective

    keys = {name: single_objective(context, name) for name in task.recipe.data.objectives}
    ranges = {name: loss_range(context.shared / key, name) for name, key in keys.items()}
    ideal, nadir = ({name: pair[i] for name, pair in ranges.items()} for i in (0, 1))
    assert isinstance(task.recipe.method, ClampOptions)
    method = replace(task.recipe.method, ideal=ideal, nadir=nadir)
    recipe = task.recipe.model_copy(update={"method": method})
    return replace(task, recipe=recipe), list(keys.values())


def _train(task: _Task, context: "Context") -> None:
    context.report("train", 0.0)
    task.entry.parsed.train(context, [point.preference for point in task.points])


def _run_point(
    task: _Task,
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


def _measure_base(
    recipe: Recipe, run: Path, splits: "Mapping[Any, PreferenceData]", progress: Progress
) -> None:
    from paretune.experiment.train_point import free_memory
    from paretune.runs.point import measure_point

    objectives = recipe.data.objectives
    equal = Preference.of(dict.fromkeys(objectives, 1 / len(objectives)))
    point = PlannedPoint(equal, recipe.evaluation.seed, "base")
    progress.point("base model")
    plain = recipe.model_copy(update={"method": Linear()})
    measure_point(plain, point, None, run / "base", splits["test"], progress.phase)
    free_memory()


def _measured(folder: Path) -> bool:
    return (folder / "metrics.json").exists()


def _describe(error: Exception, folder: Path) -> str:
    """The error in one line; its traceback goes to the folder.

    Raises:
        Exception: The error itself, where every other method would fail in the same way.
    """
    if storage_problem(error) or isinstance(error, LostClaimError):
        raise error
    write_text(folder / "failure.txt", "".join(traceback.format_exception(error)))
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _claim_cell(task: _Task) -> None:
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
    write_json(path, task.settings)


def _collect(
    recipe: "CompareRecipe", run: Path, tasks: Sequence[_Task], failures: Mapping[str, str]
) -> Comparison:
    def read(folder: Path) -> FrontPoint:
        return replace(read_point(folder), folder=str(folder.relative_to(run)))

    cells = []
    for task in tasks:
        missing = task.pending
        done = [point for point in task.points if point not in missing]
        cells.append(
            Cell(
                title=task.entry.title,
                method=task.entry.name,
                options=task.entry.settings,
                seed=task.seed,
                points=tuple(read(point.folder(task.folder)) for point in done),
                missing=tuple(point.name for point in missing),
                failure=failures.get(task.name),
                dial=DialPoints.read(task.folder),
            )
        )
    built = sorted(path.parent for path in (run / "shared").glob("*/training.json"))
    reference = recipe.evaluation.reference_point
    objectives = recipe.data.objectives
    return Comparison.of(
        cells,
        name=recipe.name,
        objectives=objectives,
        base=read(run / "base") if _measured(run / "base") else None,
        shared={path.name: read_spend(path) for path in built},
        reference_point=[reference[name] for name in objectives] if reference else None,
    )


def _publish(comparison: Comparison, folder: RunFolder) -> None:
    from paretune.report.comparison import draw_comparison, markdown

    # What rewards were normalised by, under the keys that points name as shared.
    constants = sorted(folder.path.glob("shared/*/constants.json"))
    rewards = {path.parent.name: read_object(path) for path in constants}
    if rewards != folder.manifest.get("rewards", {}):
        folder.note(rewards=rewards)
    points = [point for cell in comparison.cells for point in cell.points]
    note_skipped(points, folder)
    note_left_out(points, folder)
    if folder.holds_already("compare.json", comparison.to_json()) and all(
        (folder.path / name).exists() for name in ("compare.md", "compare.png")
    ):
        folder.publish({})  # another worker has done it
        return
    folder.publish(
        {
            "compare.json": comparison.to_json(),
            "compare.md": markdown(comparison),
            "compare.png": lambda path: draw_comparison(
                comparison, path, path.with_name("compare-scores.png")
            ),
        }
    )
