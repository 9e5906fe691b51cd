"""Running a recipe: every point trained, measured and kept, in a folder that can be gone on with.

A run folder holds ``recipe.yaml`` (every key), ``manifest.json`` (versions, data counts), the
points below ``points/``, ``front.json`` and ``front.png``. A point is finished when its
``metrics.json`` is there, which is written last; a finished point is never done again, and one
that was cut short goes on from its newest complete checkpoint. Nothing here imports torch until
there is something to train or to measure.
"""

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.data.splitting import Split, split_by_prompt
from paretune.errors import InputError
from paretune.files import main_process, read_json, write_json, write_text
from paretune.losses import plain_loss
from paretune.progress import Progress, Silent
from paretune.results.front import Front
from paretune.results.points import PlannedPoint, read_front, read_point
from paretune.results.text import preference_text
from paretune.runs.plan import plan, warm_start

if TYPE_CHECKING:
    from paretune.data import PreferenceData
    from paretune.recipes.schema import Recipe


_VERSIONS = ("paretune", "torch", "transformers", "peft", "accelerate", "datasets")
_FILES = ("front.json", "front.png", "report.html", "manifest.json", "recipe.yaml")
_CONTENTS = ("points", "base", "judge", "figures", *_FILES)


def run_sweep(recipe: "Recipe", *, fresh: bool = False, progress: Progress | None = None) -> Front:
    """Train and measure every point of a recipe that is not finished yet.

    Args:
        fresh: Delete what an earlier run left in the run folder.
        progress: Is told how it gets on.

    Returns:
        The front on the test split, also in ``front.json``.

    Raises:
        InputError: the run folder belongs to another recipe, or recipe, model and data do not fit.
        TrainingStoppedError: training broke off; the folder holds all that was done.
    """
    run, progress = Path(recipe.output_dir), progress or Silent()
    _claim(recipe, run, fresh)
    planned = plan(recipe)
    pending = [point for point in planned if not _finished(point.folder(run))]
    if pending:
        from paretune.experiment.keep import free_memory
        from paretune.experiment.reward_sources import check_sources
        from paretune.experiment.setup import training_arguments
        from paretune.runs.point import run_point

        training_arguments(recipe, pending[0].preference, pending[0].seed, run)  # may complain
        check_sources(recipe)
        splits = load_splits(recipe, run)
        progress.begin([point.name for point in planned], len(planned) - len(pending))
        for point in pending:
            progress.point(point.name)
            start = warm_start(point, planned) if recipe.sweep.warm_start else None
            run_point(
                recipe,
                point,
                point.folder(run),
                splits,
                start_from=start.folder(run) if start else None,
                report=progress.phase,
            )
            free_memory()
        progress.end()
        if not main_process():
            return _collect(recipe, run, planned, "test")
    elif (run / "front.json").exists() and (run / "front.png").exists():
        front = read_front(run)
        if len(front.points) == len(planned):  # else `evaluate` wrote it half-way
            return front
    return _publish(_collect(recipe, run, planned, "test"), run)


def evaluate_run(
    recipe: "Recipe",
    run: Path,
    split: Split = "test",
    *,
    target: Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Front:
    """Measure the trained points of a run on one split of the data.

    Args:
        recipe: The run's own, or that with other settings of what is measured.
        run: The run folder, from which the adapters are.
        target: Where the results go, a folder like a run folder without adapters; by default the
            run folder itself, which is for its own recipe and the test split only.
        fresh: Delete earlier results in `target`.
        progress: Is told how it gets on.

    Raises:
        InputError: the run has no trained point, or `target` is of another recipe.
    """
    target, progress = target or run, progress or Silent()
    planned = [p for p in plan(recipe) if (p.folder(run) / "training.json").exists()]
    if not planned:
        raise InputError(f"'{run}' has no trained point yet: run `paretune sweep` first.")
    if target != run:
        _claim(recipe, target, fresh)
    pending = [point for point in planned if not _finished(point.folder(target))]
    if pending:
        from paretune.experiment.keep import free_memory
        from paretune.runs.point import measure_point

        data = load_splits(recipe, target)[split]
        progress.begin([point.name for point in planned], len(planned) - len(pending))
        for point in pending:
            progress.point(point.name)
            measure_point(
                recipe, point, point.folder(run), point.folder(target), data, progress.phase
            )
            free_memory()
        progress.end()
        if not main_process():
            return _collect(recipe, target, planned, split)
    return _publish(_collect(recipe, target, planned, split), target)


def _finished(folder: Path) -> bool:
    return (folder / "metrics.json").exists()


def _claim(recipe: "Recipe", run: Path, fresh: bool) -> None:
    """Make the folder this recipe's own, or see that it is; of several processes, one does."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        _claim_alone(recipe, run, fresh)
        return
    from paretune.experiment.keep import wait_for_all
    from paretune.experiment.setup import training_arguments

    first = plan(recipe)[0]
    training_arguments(recipe, first.preference, first.seed, run)  # joins the processes
    if main_process():
        _claim_alone(recipe, run, fresh)
    wait_for_all()


def _claim_alone(recipe: "Recipe", run: Path, fresh: bool) -> None:
    saved = run / "recipe.yaml"
    if saved.exists() and not (run / "manifest.json").exists():  # a user's own, or a killed start
        try:
            type(recipe).from_file(saved)
        except InputError as error:
            raise InputError(
                f"'{run}' is not a run folder, and its recipe.yaml would be lost: give another "
                "output_dir=..."
            ) from error
    if fresh and saved.exists():
        for path in [run / name for name in _CONTENTS] + list(run.glob("evaluation-*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if (run / "points").exists() and saved.exists():  # else no point was begun
        other = type(recipe).from_file(saved)
        if found := recipe.differences(other):
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise InputError(
                f"'{run}' holds a run of another recipe ({'; '.join(found[:3])}{more}): give "
                "output_dir=... for a new run, or --fresh to delete that one."
            )
        return
    try:
        write_text(saved, recipe.to_yaml())
    except OSError as error:
        raise InputError(f"The run folder '{run}' cannot be written: {error}.") from error


def load_splits(recipe: "Recipe", run: Path) -> "Mapping[Split, PreferenceData]":
    """The recipe's data, with its counts noted in the manifest."""
    from paretune.experiment.setup import load_data

    data = load_data(recipe.data)
    splits = split_by_prompt(data, recipe.data.split, recipe.data.seed)
    if main_process():
        _note(recipe, run, {"all": data.counts, **{k: v.counts for k, v in splits.items()}})
    return splits


def _note(recipe: "Recipe", run: Path, counts: Mapping[str, Any]) -> None:
    """Write the manifest; each time the run is gone on with adds a session."""
    path = run / "manifest.json"
    sessions = read_json(path)["sessions"] if path.exists() else []
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: version(name) for name in _VERSIONS},
    }
    manifest = {
        "recipe": recipe.name,
        "seeds": recipe.sweep.seeds,
        "data": counts,
        "normalisation": {key: getattr(recipe.method, key, None) for key in ("ideal", "nadir")},
        "losses": {name: plain_loss(loss) for name, loss in recipe.losses.items()},
        "sessions": [*sessions, session],
    }
    write_json(path, manifest)


def _collect(recipe: "Recipe", run: Path, planned: Sequence[PlannedPoint], split: str) -> Front:
    points = [read_point(point.folder(run)) for point in planned]
    reference = recipe.evaluation.reference_point
    return Front.of(
        points,
        name=recipe.name,
        method=recipe.method_name,
        split=split,
        reference_point=[reference[n] for n in recipe.data.objectives] if reference else None,
    )


def _publish(front: Front, run: Path) -> Front:
    """Write the front, as data and as a picture."""
    front.write(run / "front.json")
    if len(front.objectives) > 1:
        from paretune.report.figures import PlotPoint, draw_front

        series: dict[str, list[PlotPoint]] = {}
        many = len({point.seed for point in front.points}) > 1
        for point in front.points:
            name = f"{front.method}, seed {point.seed}" if many else front.method
            label = preference_text(point.preference, names=False)
            series.setdefault(name, []).append(PlotPoint(point.losses, label))
        draw_front(
            series,
            front.objectives,
            run / "front.png",
            title=front.name,
            quantity=f"{front.split} loss",
        )
    return front
