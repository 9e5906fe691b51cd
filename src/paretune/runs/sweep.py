"""Running a recipe: every point trained, measured and kept, in a folder that can be resumed.

A run folder holds ``recipe.yaml`` (every key), ``manifest.json`` (versions, data counts, digests),
the points below ``points/``, what several of them come of below ``shared/`` (see
`paretune.runs.steerable`), ``front.json`` and ``front.png``. A point is finished when its
``metrics.json`` is there, which is written last; a finished point is never done again, and one
that was cut short resumes from its newest complete checkpoint. Nothing here imports torch until
there is something to train or to measure.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paretune.data.splitting import Split
from paretune.errors import InputError, TrainingStoppedError, UntrainedError
from paretune.files import main_process, several_processes
from paretune.moo.preference import Preference
from paretune.progress import Progress, Silent, default_progress
from paretune.recipes.dial import ConditionedOptions
from paretune.recipes.load import dated
from paretune.results.dial import points_calibration
from paretune.results.front import Front, FrontPoint, read_front, read_point
from paretune.results.points import PlannedPoint, measured_points
from paretune.results.run_folder import begun, read_manifest
from paretune.results.text import preference_text
from paretune.results.weights import TRAINING
from paretune.runs.folder import Content, RunFolder
from paretune.runs.identity import RecipeIdentity
from paretune.runs.plan import count_points, plan, scaled_recipe, seed_suffix, warm_start
from paretune.runs.preparation import (
    check_recipe,
    check_sampling,
    load_splits,
    note_left_out,
    note_skipped,
)
from paretune.runs.steerable import conditioned, fold_at, fold_points, folded, title, trainings

if TYPE_CHECKING:
    from paretune.data import PreferenceData
    from paretune.recipes.schema import Recipe

logger = logging.getLogger(__name__)

_FILES = ("front.json", "front.png", "report.html", "manifest.json", "recipe.yaml")
_CONTENTS = ("points", "shared", "base", "judge", "figures", "evaluation-*", *_FILES)

# Keys that matter where points are measured; what a point was trained with stays with it.
_MEASURED_WITH = (
    *("data", "model", "loss", "evaluation", "rewards", "sweep.preferences", "sweep.seeds"),
    *("train.max_length", "train.overlong", "train.packing", "train.per_device_eval_batch_size"),
    *("train.reference_cache", "train.bf16", "train.fp16", "train.tf32", "train.use_cpu"),
    *("train.full_determinism", "train.ddp_"),
)


def run_folder(recipe: "Recipe", run: Path) -> RunFolder:
    """The folder of a sweep, or of the same measured otherwise."""
    return RunFolder(run, RecipeIdentity(recipe), contents=_CONTENTS)


def run_sweep(recipe: "Recipe", *, fresh: bool = False, progress: Progress | None = None) -> Front:
    """Train and measure every point of a recipe that is not finished yet.

    Args:
        fresh: Delete what an earlier run left in the run folder.
        progress: Is told how it gets on; by default a bar in a notebook, and nobody elsewhere.

    Returns:
        The front on the test split, also in ``front.json``.

    Raises:
        InputError: the run folder belongs to another recipe, another process is at work in it, its
            data or model changed since it was begun, or recipe, model and data do not fit.
        TrainingStoppedError: training broke off, or points did not train; the folder holds all
            that was done.
    """
    run, progress = Path(recipe.output_dir), progress or default_progress()
    folder, planned = run_folder(recipe, run), plan(recipe, run)
    folder.check(fresh=fresh)
    unfinished = fresh or not all(folder.finished(point.path) for point in planned)
    data = None
    if unfinished:  # before anything is written or deleted
        data = check_recipe(recipe)
        check_sampling(recipe, data)
    _join(recipe, run)
    with folder.shared_session(fresh=fresh):
        pending = not all(folder.finished(point.path) for point in planned)
        untrained = {}
        if pending:
            splits = load_splits(recipe, folder, data=data)
            untrained = _run_points(recipe, folder, splits, progress)
            planned = plan(recipe, run)
        elif (run / "front.json").exists() and (run / "front.png").exists():
            front = read_front(run)
            if len(front.points) == len(planned):  # else `evaluate` wrote it half-way
                return front
        measured = [point for point in planned if point.name not in untrained]
        if len(planned) < count_points(recipe) and not untrained:
            logger.warning(
                "%d of %d points: between the others no gap is left, or the ends are no front.",
                len(planned),
                count_points(recipe),
            )
        if measured:
            front = _collect(recipe, run, measured, "test")
            with folder.alone():
                if pending:
                    note_left_out(front.points, folder)
                    note_skipped(front.points, folder)
                _publish(front, folder)
        if untrained:
            name, reason = next(iter(untrained.items()))
            raise TrainingStoppedError(
                f"{len(untrained)} of {len(planned)} points did not train and are not in the "
                f"front; {name}: {reason}"
            )
        return front


def _run_points(
    recipe: "Recipe",
    folder: RunFolder,
    splits: "Mapping[Split, PreferenceData]",
    progress: Progress,
) -> dict[str, str]:
    """Train and measure what is not finished; why those did not train that did not, by name."""
    from paretune.experiment.train_point import free_memory, told
    from paretune.runs.point import run_point

    run, method = folder.path, conditioned(recipe)
    recipe = dated(recipe, folder.started())
    once = trainings(recipe)
    points: dict[str, PlannedPoint] = {}
    starts: dict[str, PlannedPoint | None] = {}
    progress = folder.pieces.watched(progress)

    def left() -> bool:
        """Whether something is to be done; the next points may rest on those that are trained."""
        planned: list[PlannedPoint] = told(plan(recipe, run))
        points.update({point.path: point for point in planned})
        if recipe.sweep.warm_start:
            starts.update({point.path: warm_start(point, planned) for point in planned})
        return bool(told(not all(finished(name) or name in failed for name in points)))

    def do(name: str) -> str | None:
        if method is not None and name in once:
            return fold_points(method, recipe, run, once[name], splits, progress)
        point, start = points[name], starts.get(name)
        progress.point(point.name)
        try:
            run_point(
                scaled_recipe(recipe, run, point),
                point,
                point.folder(run),
                splits,
                start_from=start.folder(run) if start else None,
                report=progress.phase,
                validate=recipe.sweep.placement == "gap",
            )
        except UntrainedError as error:
            logger.warning("%s did not train: %s", point.name, error)
            return str(error)
        finally:
            free_memory()
        return None

    def finished(name: str) -> bool:
        return folded(recipe, run, once[name]) if name in once else folder.finished(name)

    def after(name: str) -> str | None:
        if name in once:
            return None
        if (start := starts.get(name)) is not None:
            return start.path
        return next((each for each, seed in once.items() if seed == points[name].seed), None)

    def done() -> int:
        return sum(map(finished, [*once, *points]))

    failed: dict[str, str] = {}
    more = left()
    names = [title(recipe, seed) for seed in once.values()]
    names += [point.name for point in points.values()]
    names += ["to be placed"] * (count_points(recipe) - len(points))
    progress.begin(names, done())
    while more:
        failed |= folder.work(
            [*once, *points], do, lambda: progress.finished(done()), finished=finished, after=after
        )
        more = left()
    progress.end()
    return {points[name].name: why for name, why in failed.items() if name in points}


def evaluate_run(
    recipe: "Recipe",
    run: Path,
    split: Split = "test",
    *,
    preference: Preference | None = None,
    target: Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Front:
    """Measure the trained points of a run on one split of the data.

    Args:
        recipe: The run's own, or that with other settings of what is measured.
        run: The run folder, from which the adapters are.
        preference: Measure this one alone; of a run with one training for all, any will do.
        target: Where the results go, a folder like a run folder without adapters; by default the
            run folder itself, which is for its own recipe and the test split only.
        fresh: Delete earlier results in `target`.
        progress: Is told how it gets on.

    Returns:
        The front of the points; if there is a `preference`, of all that `target` has.

    Raises:
        InputError: the run has no trained point, or none at `preference`; `target` is of another
            recipe or in use; data or model changed since the run was begun; or a key of the
            recipe differs that has no effect on what is trained already.
    """
    target, progress = target or run, progress or Silent()
    _check_measured_with(recipe, run)
    folder = RunFolder(run, identity=None) if target == run else run_folder(recipe, target)
    _join(recipe, target)
    sources = _sources(recipe, run, preference)
    with folder.session(fresh=fresh):
        if preference is not None and not sources:
            sources = _folded(recipe, run, preference, target)
        pending = [point for point in sources if not folder.finished(point.path)]
        if pending:
            recipe.model.check_place()  # torch takes seconds
            from paretune.experiment.train_point import free_memory
            from paretune.runs.point import measure_point

            data = load_splits(recipe, folder, run)[split]
            recipe = dated(recipe, begun(read_manifest(run)) or folder.started())
            progress.begin([point.name for point in sources], len(sources) - len(pending))
            for point in pending:
                progress.point(point.name)
                source = sources[point]
                measure_point(recipe, point, source, point.folder(target), data, progress.phase)
                free_memory()
            progress.end()
        others = () if preference is None else measured_points(target)
        return _publish(_collect(recipe, target, list(sources), split, others), folder)


def _check_measured_with(recipe: "Recipe", run: Path) -> None:
    if not RecipeIdentity(recipe).known(run):
        return
    for each in RecipeIdentity(recipe).differences(run):
        key = each.partition(":")[0]
        if not key.startswith(_MEASURED_WITH):
            raise InputError(
                f"{key} belongs to the training, which is over: measuring the points of '{run}' "
                "with another value would change nothing. Leave it out, or train with it: "
                "`paretune sweep` with another output_dir."
            )


def _sources(
    recipe: "Recipe", run: Path, preference: Preference | None
) -> dict[PlannedPoint, Path]:
    """The run's trained points, or that at a preference, and their folders."""
    trained = [p for p in plan(recipe, run) if (p.folder(run) / TRAINING).exists()]
    if not trained:
        raise InputError(f"'{run}' has no trained point yet: run `paretune sweep` first.")
    wanted = [p for p in trained if preference in (None, p.preference)]
    if not wanted and not isinstance(recipe.method, ConditionedOptions):
        points = "; ".join(preference_text(p.preference) for p in trained)
        raise InputError(
            f"'{run}' has no point at {preference_text(preference or {})}, and a training for each "
            f"of its points, {points}: give one of these, or none to measure all."
        )
    return {point: point.folder(run) for point in wanted}


def _folded(
    recipe: "Recipe", run: Path, preference: Preference, target: Path
) -> dict[PlannedPoint, Path]:
    """The points at any preference of a run with one training for all, folded into `target`."""
    from paretune.experiment.train_point import wait_for_all

    found = {}
    for seed in recipe.sweep.seeds:
        point = PlannedPoint(preference, seed, preference.slug() + seed_suffix(recipe, seed))
        if main_process():
            fold_at(preference, run, recipe, seed, point.folder(target))
        wait_for_all()
        if (point.folder(target) / TRAINING).exists():
            found[point] = point.folder(target)
    return found


def _join(recipe: "Recipe", run: Path) -> None:
    """Join the processes that were started together, if there are several."""
    if several_processes():
        from paretune.experiment.setup import training_arguments

        first, method = plan(recipe, run)[0], conditioned(recipe)
        if method is not None:
            method.training_arguments(recipe, first.seed, run)
        else:
            training_arguments(recipe, first.preference, first.seed, run)


def _collect(
    recipe: "Recipe",
    run: Path,
    planned: Sequence[PlannedPoint],
    split: str,
    others: Sequence[FrontPoint] = (),
) -> Front:
    points = [read_point(point.folder(run)) for point in planned]
    if others:
        found = {point.folder: point for point in [*others, *points]}
        points = sorted(found.values(), key=lambda p: (p.seed, *p.preference.values()))
    reference = recipe.evaluation.reference_point
    return Front.of(
        points,
        name=recipe.name,
        method=recipe.method_name,
        split=split,
        reference_point=[reference[n] for n in recipe.data.objectives] if reference else None,
    )


def _publish(front: Front, folder: RunFolder) -> Front:
    """Write the front, as data and as a picture, unless another worker has done so."""
    if not main_process():
        return front
    files: dict[str, Content] = {}
    if not folder.holds_already("front.json", front.to_json()):
        files["front.json"] = front.to_json()
    picture = folder.path / "front.png"
    if len(front.objectives) > 1 and (files or not picture.exists()):
        from paretune.report.figures import PlotPoint, dial_curve, draw_front

        series: dict[str, list[PlotPoint]] = {}
        many = len({point.seed for point in front.points}) > 1
        for point in front.points:
            name = f"{front.method}, seed {point.seed}" if many else front.method
            label = preference_text(point.preference, names=False)
            series.setdefault(name, []).append(PlotPoint(point.losses, label))
        calibration = points_calibration(folder.path, front.points, front.objectives)
        curves = {} if calibration is None else dial_curve(calibration, front.objectives)
        files["front.png"] = lambda path: draw_front(
            series,
            front.objectives,
            path,
            title=front.name,
            quantity=f"{front.split} loss",
            curves=curves,
        )
    folder.publish(files)
    return front
