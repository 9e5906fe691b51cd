"""Running a comparison: every method on the same model, data, budget and metrics.

A run folder holds ``recipe.yaml``, ``manifest.json``, the base model's metrics in ``base/``, what
several methods use in ``shared/``, and in ``cells/<method>-seed<n>/points/`` what each method left;
``compare.json``, ``compare.md`` and pictures are made of these. What is finished is never done
again; a method that fails is reported, and the others are run all the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.errors import InputError
from paretune.files import main_process, read_object, several_processes
from paretune.moo.preference import Preference
from paretune.moo.weightings import Linear
from paretune.progress import Progress, Silent
from paretune.recipes.load import dated
from paretune.recipes.schema import Recipe
from paretune.results.comparison import Cell, Comparison
from paretune.results.dial import DialPoints
from paretune.results.front import FrontPoint, read_point
from paretune.results.points import PlannedPoint, read_spend
from paretune.runs.compare_cell import (
    Task,
    all_tasks,
    check_train,
    is_measured,
    run_task,
    step_names,
)
from paretune.runs.folder import RunFolder
from paretune.runs.identity import RecipeIdentity
from paretune.runs.preparation import (
    check_recipe,
    check_sampling,
    load_splits,
    note_left_out,
    note_skipped,
)

if TYPE_CHECKING:
    from paretune.baselines.recipe import CompareRecipe
    from paretune.data import PreferenceData

_RESULTS = ("compare.json", "compare.md", "compare.png", "compare-scores.png")
_FILES = ("manifest.json", "recipe.yaml", "report.html", *_RESULTS)
_CONTENTS = ("cells", "shared", "base", "judge", "figures", *_FILES)
_MAY_DIFFER = ("methods", "sweep.seeds", "sweep.preferences")  # what is there already stays


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
    _check_divisible(recipe)
    folder = compare_folder(recipe)
    folder.check(fresh=fresh)
    tasks, failures, data = all_tasks(recipe, run), dict[str, str](), None
    if fresh or not folder.finished("base") or any(task.unfinished for task in tasks):
        recipe.model.check_place()  # at once, and torch takes seconds
        for task in tasks:
            check_train(task)
        data = check_recipe(recipe)  # before anything is written or deleted
        for task in tasks:
            if not task.own_training:
                check_sampling(task.recipe, data)
    _join(recipe, run)
    with folder.shared_session(fresh=fresh):
        if not folder.finished("base") or any(task.unfinished for task in tasks):
            splits = load_splits(recipe, folder, data=data)
            recipe = dated(recipe, folder.started())
            tasks = all_tasks(recipe, run)
            failures = _run_tasks(recipe, folder, tasks, splits, progress)
        comparison = _collect(recipe, run, tasks, failures)
        if main_process():
            with folder.alone():
                _publish(comparison, folder)
        return comparison


def _check_divisible(recipe: "CompareRecipe") -> None:
    if several_processes() and recipe.undivided:
        raise InputError(
            f"Trainings of {recipe.undivided} cannot be divided among processes: leave them out of "
            "'methods', or start plain `paretune compare ... --workers N`, which gives each "
            "process methods of its own."
        )


def _join(recipe: "CompareRecipe", run: Path) -> None:
    """Join the processes that were started together, if there are several."""
    if not several_processes():
        return
    from paretune.experiment.setup import training_arguments

    first = all_tasks(recipe, run)[0]
    training_arguments(first.recipe, first.points[0].preference, first.seed, run)


def _run_tasks(
    recipe: "CompareRecipe",
    folder: RunFolder,
    tasks: Sequence[Task],
    splits: "Mapping[Any, PreferenceData]",
    progress: Progress,
) -> dict[str, str]:
    """Do what is left of the base model and of every task; why those that failed did, by name."""
    cells = {str(task.folder.relative_to(folder.path)): task for task in tasks}
    steps = ["base model", *(name for task in tasks for name in step_names(task))]
    watched = folder.pieces.watched(progress)

    def do(name: str) -> str | None:
        if name in cells:
            return run_task(cells[name], folder.path, splits, watched)
        _measure_base(recipe, folder.path, splits, watched)
        return None

    def finished(name: str) -> bool:
        return not cells[name].unfinished if name in cells else folder.finished(name)

    def steps_done() -> int:
        done = [len(step_names(task)) for task in tasks if not task.unfinished]
        return sum(done) + folder.finished("base")

    watched.begin(steps, steps_done())
    failed = folder.work(
        ["base", *cells], do, lambda: watched.finished(steps_done()), finished=finished
    )
    watched.end()
    if "base" in failed:
        raise InputError(f"The base model could not be measured: {failed['base']}")
    return {cells[name].name: why for name, why in failed.items()}


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


def _collect(
    recipe: "CompareRecipe", run: Path, tasks: Sequence[Task], failures: Mapping[str, str]
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
        base=read(run / "base") if is_measured(run / "base") else None,
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
