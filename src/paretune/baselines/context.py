"""What a method of a comparison is given, and what it tells of its expenses.

A method is a `Baseline` in a file of its own and a line in `paretune.baselines.BASELINES`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.claims import held
from paretune.experiment.train_point import (
    drop_checkpoints,
    finish_training,
    told,
    wait_for_all,
)
from paretune.files import drop_partials, main_process, move, read_object
from paretune.moo.preference import Preference
from paretune.progress import Report
from paretune.recipes.section import Section
from paretune.spend import Spend as Spend
from paretune.spend import Watch as Watch

if TYPE_CHECKING:
    from paretune.data import PreferenceData
    from paretune.recipes.schema import Recipe


class Baseline(Section, ABC):
    """A method of a comparison that trains by itself; its keys are its options in the recipe."""

    def check_recipe(self, recipe: "Recipe") -> None:
        """Raise InputError where it is plain before any training that the recipe does not fit."""

    @property
    def divisible(self) -> bool:
        """Whether several processes can share each of its trainings, as those of a sweep."""
        return False

    @property
    def steerable(self) -> bool:
        """Whether its points are folded from one adapter with a gate (`baselines.dial`)."""
        return False

    @classmethod
    def earlier(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings that an earlier version kept, as this one would have kept them."""
        return settings

    @abstractmethod
    def train(self, context: "Context", preferences: Sequence[Preference]) -> None:
        """Train what is missing for these preferences.

        Leaves in `Context.point` of every preference a PEFT adapter and, written last,
        ``training.json`` (see `Context.finish`). A point that has it is never trained again.
        """


@dataclass(frozen=True)
class Context:
    """One method with one seed: what it may use, and where its results go.

    Attributes:
        recipe: model, lora, data, loss, train and evaluation, the same for all methods.
        splits: ``train``, ``validation`` and ``test``; a method must not look at the last.
        seed: of everything random.
        folder: the method's own, with this seed.
        shared: what several methods use, such as single-objective adapters; see `once`.
        report: told how far the current phase of the current point is.
        suffix: of the points' folders.
    """

    recipe: "Recipe"
    splits: "Mapping[Any, PreferenceData]"
    seed: int
    folder: Path
    shared: Path
    report: Report = lambda phase, done: None
    suffix: str = ""

    def point(self, preference: Preference) -> Path:
        """The folder of a preference's adapter."""
        return self.folder / "points" / f"{preference.slug()}{self.suffix}"

    def untrained(self, preferences: Sequence[Preference]) -> list[Preference]:
        """Those whose points are still to be trained: the same in all processes."""
        left: list[Preference] = told([p for p in preferences if not trained(self.point(p))])
        return left

    def finish(
        self, folder: Path, steps: int, spend: Spend, shared: Iterable[str] = (), **more: Any
    ) -> None:
        """`finish_point`, by one process."""
        if main_process():
            finish_point(folder, steps, spend, shared, self.shared, **more)

    def once(self, key: str, build: Callable[[Path], None]) -> Path:
        """The folder of something shared, built by whoever needs it first.

        ``build(folder)`` fills a folder and writes its ``training.json`` (`finish`); if it is
        interrupted it is given the same folder again, to go on. Put the seed into `key` if the
        result depends on it.
        """
        target, partial = self.shared / key, self.shared / f"{key}.partial"
        claim = self.shared.parent / "claims" / f"shared.{key}"
        with held(claim, patience=math.inf) if main_process() else nullcontext():
            # Other workers may have built it, and of several processes none has changed it yet.
            there, built = told((target.exists(), trained(partial)))
            if there:
                return target
            if main_process():
                partial.mkdir(parents=True, exist_ok=True)
                drop_partials(partial)
            wait_for_all()
            if not built:
                build(partial)
            wait_for_all()
            if main_process():
                drop_checkpoints(partial)  # a kill may have left them
                move(partial, target)
            wait_for_all()
        return target


def finish_point(
    folder: Path, steps: int, spend: Spend, shared: Iterable[str], place: Path, **more: Any
) -> None:
    """Write ``training.json``, which says that all else in `folder` is there.

    Args:
        spend: of this point alone.
        shared: keys of what else it needed (see `Context.once`).
        place: where that is.
        more: further values to keep, such as the KL divergence at the end.
    """
    keys = sorted(shared)
    needed = [read_object(place / key / "training.json") for key in keys]
    record = {
        "steps": steps,
        # Of the trainings it is made of; what took no step passes on those of others.
        "skipped_steps": sum(int(n.get("skipped_steps") or 0) for n in needed if n.get("steps")),
        "seconds": spend.seconds,
        "spend": spend.to_json(),
        "shared": keys,
    }
    finish_training(folder, {**record, **more})


def trained(folder: Path) -> bool:
    """Whether the point in `folder` needs no more training."""
    return (folder / "training.json").exists()
