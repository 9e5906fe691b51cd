"""Points of a run that come of one training: a gated adapter, calibrated, and folded at each p.

In the run folder, ``shared/conditioned-*`` is what was trained and ``shared/dial-*`` the same with
its gate and calibration; the points' adapters are folded from it.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.data.splitting import Split
from paretune.errors import UntrainedError
from paretune.files import read_object
from paretune.moo.preference import Preference
from paretune.progress import Phase, Progress
from paretune.recipes.dial import ConditionedOptions
from paretune.results.dial import dial_folder
from paretune.results.points import PlannedPoint
from paretune.results.weights import TRAINING
from paretune.runs.plan import plan, seed_suffix

if TYPE_CHECKING:
    from paretune.baselines.conditioned import Conditioned
    from paretune.data import PreferenceData
    from paretune.recipes.schema import Recipe

logger = logging.getLogger(__name__)


def conditioned(recipe: "Recipe") -> "Conditioned | None":
    """The method that trains once for all points of a recipe, if its method is one."""
    if not isinstance(recipe.method, ConditionedOptions):
        return None
    from paretune.baselines.conditioned import Conditioned

    return Conditioned(**dict(recipe.method))


def trainings(recipe: "Recipe") -> dict[str, int]:
    """What must be trained before the points can be measured: names as of folders, and seeds."""
    if not isinstance(recipe.method, ConditionedOptions):
        return {}
    return {f"training{seed_suffix(recipe, seed)}": seed for seed in recipe.sweep.seeds}


def folded(recipe: "Recipe", run: Path, seed: int) -> bool:
    """Whether all points of a seed have their adapters."""
    return not _missing(recipe, run, seed)


def fold_points(
    method: "Conditioned",
    recipe: "Recipe",
    run: Path,
    seed: int,
    splits: "Mapping[Split, PreferenceData]",
    progress: Progress,
) -> str | None:
    """Train and calibrate with a seed, and fold its points, as far as that is not done.

    Returns:
        Why it did not train, if it did not.
    """
    from paretune.baselines.context import Context
    from paretune.experiment.train_point import wait_for_all

    def report(phase: Phase, done: float) -> None:
        # Two preparations, of training and of calibration; progress reckons with one.
        progress.phase("train" if phase == "prepare" else phase, done)

    seen = {name: data for name, data in splits.items() if name != "test"}
    missing = _missing(recipe, run, seed)
    wait_for_all()  # before one of several processes makes some
    progress.point(title(recipe, seed))
    context = Context(recipe, seen, seed, run, run / "shared", report, seed_suffix(recipe, seed))
    failure = None
    try:
        method.train(context, [point.preference for point in missing])
    except UntrainedError as error:
        logger.warning("%s changed no weight: %s", title(recipe, seed), error)
        failure = str(error)
    wait_for_all()
    return failure


def fold_at(preference: Preference, run: Path, recipe: "Recipe", seed: int, target: Path) -> bool:
    """Fold the run's adapter with a seed at any preference, into the folder `target`.

    Returns:
        Whether the run has such an adapter.

    Raises:
        InputError: its files are damaged.
    """
    dial = dial_folder(run, _trainings(recipe, run, seed))
    if dial is None:
        return False
    if not (target / TRAINING).exists():
        from paretune.baselines.dial import fold_point

        fold_point(dial, preference, target)
    return True


def title(recipe: "Recipe", seed: int) -> str:
    """A training's, for its user."""
    return f"one training{seed_suffix(recipe, seed)}"


def _missing(recipe: "Recipe", run: Path, seed: int) -> list[PlannedPoint]:
    planned = [point for point in plan(recipe, run) if point.seed == seed]
    return [point for point in planned if not (point.folder(run) / TRAINING).exists()]


def _trainings(recipe: "Recipe", run: Path, seed: int) -> Sequence[Mapping[str, Any]]:
    paths = [point.folder(run) / TRAINING for point in plan(recipe, run) if point.seed == seed]
    return [read_object(path) for path in paths if path.exists()]
