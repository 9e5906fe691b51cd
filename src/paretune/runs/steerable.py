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


def trainings(recipe: "Recipe", run: Path) -> list[str]:
    """What there is to train before the points can be measured, by name."""
    if not isinstance(recipe.method, ConditionedOptions):
        return []
    return [_title(recipe, seed) for seed in recipe.sweep.seeds if _missing(recipe, run, seed)]


def fold_points(
    method: "Conditioned",
    recipe: "Recipe",
    run: Path,
    splits: "Mapping[Split, PreferenceData]",
    progress: Progress,
) -> dict[str, str]:
    """Train and calibrate with each seed, and fold every point, as far as that is not done.

    Returns:
        Why points did not train that did not, by name.
    """
    from paretune.baselines.context import Context
    from paretune.experiment.train_point import wait_for_all

    def report(phase: Phase, done: float) -> None:
        # Two preparations, of training and of calibration; progress reckons with one.
        progress.phase("train" if phase == "prepare" else phase, done)

    seen = {name: data for name, data in splits.items() if name != "test"}
    missing = {seed: _missing(recipe, run, seed) for seed in recipe.sweep.seeds}
    untrained: dict[str, str] = {}
    wait_for_all()  # before one of several processes makes some
    for seed, points in missing.items():
        if not points:
            continue
        progress.point(_title(recipe, seed))
        suffix = seed_suffix(recipe, seed)
        context = Context(recipe, seen, seed, run, run / "shared", report, suffix)
        try:
            method.train(context, [point.preference for point in points])
        except UntrainedError as error:
            logger.warning("%s changed no weight: %s", _title(recipe, seed), error)
            untrained |= {point.name: str(error) for point in points}
        wait_for_all()
    return untrained


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


def _title(recipe: "Recipe", seed: int) -> str:
    return f"one training{seed_suffix(recipe, seed)}"


def _missing(recipe: "Recipe", run: Path, seed: int) -> list[PlannedPoint]:
    planned = [point for point in plan(recipe, run) if point.seed == seed]
    return [point for point in planned if not (point.folder(run) / TRAINING).exists()]


def _trainings(recipe: "Recipe", run: Path, seed: int) -> Sequence[Mapping[str, Any]]:
    paths = [point.folder(run) / TRAINING for point in plan(recipe, run) if point.seed == seed]
    return [read_object(path) for path in paths if path.exists()]
