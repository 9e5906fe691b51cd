"""Which of a run's points best meets a preference, and why.

The choice is by the weighted Chebyshev value max_m p_m f^m of a point's losses, which CLAMP trains
for: on the validation split where ``paretune evaluate RUN --split validation`` has measured it,
else on the test split.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paretune.baselines.score_prompts import ScorePrompt
from paretune.errors import InputError
from paretune.moo.preference import Preference
from paretune.names import shown
from paretune.recipes import Recipe, dated, load_recipe
from paretune.recipes.points import as_preference
from paretune.results.damage import warn_of_damage
from paretune.results.dial import dial_folder
from paretune.results.front import Front, FrontPoint, ObjectiveMetrics
from paretune.results.gates import read_calibration
from paretune.results.run_folder import Run, begun
from paretune.results.text import preference_text
from paretune.results.weights import check_weights, weight_files

logger = logging.getLogger(__name__)

_ANSWERING = ("evaluation", "model")
"""Sections of a recipe that decide on answers."""


@dataclass(frozen=True)
class Candidate:
    """A trained point, as one to choose.

    Attributes:
        name: unique among the candidates; fit for a file.
        point: as measured on the split of the choice.
        folder: where its adapter (or, after full fine-tuning, its model) is.
        asked: how its prompts ask for scores, of a method that is told so (RiC); else None.
        position: where the gate of the adapter is to be put, if it is a conditioned one.
    """

    name: str
    point: FrontPoint
    folder: Path
    asked: ScorePrompt | None = None
    position: tuple[float, ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether it is a whole model, not an adapter."""
        return not (self.folder / "adapter_config.json").exists()

    @property
    def stock(self) -> bool:
        """Whether it is an adapter as PEFT has them, without a gate."""
        return self.position is None and not self.whole


@dataclass(frozen=True)
class Choice:
    """The candidates for a preference, the best first, with the split that decided."""

    preference: Preference
    split: str
    ranked: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        return self.ranked[0]

    def reason(self) -> str:
        """What was chosen and why, the value of every candidate in a line of its own."""
        if self.best.position is not None:
            return self._where()
        wanted = preference_text(self.preference)
        lines = [
            f"For {wanted}: {self.best.name}, whose largest p·loss is the least of "
            f"{len(self.ranked)} on the {self.split} split."
        ]
        width = max(len(candidate.name) for candidate in self.ranked)
        for candidate in self.ranked:
            terms = _terms(candidate, self.preference)
            worst = max(terms, key=lambda name: terms[name])
            weight, loss = self.preference[worst], candidate.point.losses[worst]
            lines.append(
                f"  {candidate.name:<{width}}  {weight * loss:.4f} = "
                f"{weight:.3g} × {loss:.4f} ({worst})"
            )
        return "\n".join(lines)

    def _where(self) -> str:
        """Where the gate is, and what the calibration expects there."""
        losses = preference_text(self.best.point.losses)
        position = ", ".join(f"{value:.3g}" for value in self.best.position or ())
        return (
            f"For {preference_text(self.preference)}: the gate at ({position}), where losses on "
            f"the {self.split} split are about {losses} by the calibration."
        )


@dataclass(frozen=True)
class Choices:
    """The points of a run, or of one method of a comparison, to choose from.

    Attributes:
        recipe: the run's own, with the changes asked for.
        method: what the run calls the method.
        split: whose losses decide.
        candidates: in the run's order.
        dial: the folder of the conditioned adapter that serves every preference; None without one.
    """

    run: Path
    recipe: Recipe
    method: str
    split: str
    candidates: tuple[Candidate, ...]
    dial: Path | None = None

    def preference(self, weights: Mapping[str, float]) -> Preference:
        """The weights as a preference; none at all is equal weights, a missing name is 0.

        Raises:
            InputError: an unknown objective, or weights that do not sum to one.
        """
        names = self.recipe.data.objectives
        given = weights or dict.fromkeys(names, 1 / len(names))
        return as_preference(given, names, "the preference")

    def choose(self, preference: Preference) -> Choice:
        """Rank the candidates by max_m p_m f^m; of equals, by Σ_m p_m f^m.

        With a dial there is one: its adapter, the gate where the calibration has the preference.
        """
        if self.dial is not None:
            return Choice(preference, "validation", (self._dialled(self.dial, preference),))

        def value(candidate: Candidate) -> tuple[float, float]:
            terms = _terms(candidate, preference).values()
            return max(terms), math.fsum(terms)

        return Choice(preference, self.split, tuple(sorted(self.candidates, key=value)))

    def _dialled(self, folder: Path, preference: Preference) -> Candidate:
        objectives = self.recipe.data.objectives
        calibration = read_calibration(folder, objectives)
        position = calibration.position([preference[name] for name in objectives])
        losses = calibration.losses_at(position).tolist()
        metrics = {
            name: ObjectiveMetrics(loss, math.nan, math.nan)
            for name, loss in zip(objectives, losses, strict=True)
        }
        point = FrontPoint(
            preference=dict(preference),
            metrics=metrics,
            chebyshev=max(preference[name] * m.loss for name, m in metrics.items()),
            seed=self.candidates[0].point.seed,
            folder=str(folder.relative_to(self.run)),
        )
        return Candidate(preference.slug(), point, folder, position=position)

    def ends(self) -> list[Choice]:
        """For every objective, the choice where nothing else matters."""
        return [self.choose(self.preference({name: 1.0})) for name in self.recipe.data.objectives]


def open_run(folder: Path, overrides: Sequence[str] = (), method: str | None = None) -> Choices:
    """The trained points of a run folder.

    Args:
        overrides: Changes to the run's recipe, such as ``evaluation.temperature=0``.
        method: Of a comparison, which of its methods; its title there.

    Raises:
        InputError: no run folder, no results or no weights in it, or an unknown method.
    """
    run = Run.read(folder)
    warn_of_damage(folder)
    for item in overrides:
        if item.split("=")[0].split(".")[0].strip() not in _ANSWERING:
            raise InputError(
                f"{shown(item)} changes nothing here: answers depend on the sections "
                f"{' and '.join(_ANSWERING)}, for example evaluation.max_new_tokens=200."
            )
    recipe = dated(_recipe(run, overrides), begun(run.manifest))
    title = _method(run, method)
    points, split = run.series[title], run.split
    if run.front is not None:
        validated = _validated(folder, recipe, points)
        if validated is not None:
            points, split = validated, "validation"
    names = [Path(point.folder).name for point in points]
    if max(Counter(names).values()) > 1:  # a comparison's, with several seeds
        names = [f"{n}-seed{point.seed}" for n, point in zip(names, points, strict=True)]
    candidates = tuple(
        Candidate(name, point, folder / point.folder, ScorePrompt.of(folder / point.folder))
        for name, point in zip(names, points, strict=True)
        if _has_weights(folder / point.folder)
    )
    if not candidates:
        raise InputError(f"'{folder}' has no weights any more: its points hold no adapter.")
    trainings = [point.training for point in points]
    dial = dial_folder(folder, trainings)
    if dial is not None:
        check_weights(dial)
    return Choices(folder, recipe, title, split, candidates, dial)


def _has_weights(folder: Path) -> bool:
    """Whether a point's weights are there; a warning if its user has deleted them.

    Raises:
        InputError: a part of them is missing.
    """
    if not weight_files(folder):
        logger.warning("'%s' holds no weights any more: the point is left out", folder)
        return False
    check_weights(folder, contents=False)
    return True


def _recipe(run: Run, overrides: Sequence[str]) -> Recipe:
    if run.comparison is None:
        return load_recipe(run.path / "recipe.yaml", overrides)
    from paretune.baselines.recipe import load_comparison  # imports torch

    return load_comparison(run.path / "recipe.yaml", overrides)


def _method(run: Run, wanted: str | None) -> str:
    titles = [title for title, points in run.series.items() if points]
    listed = ", ".join(f"'{title}'" for title in titles)
    if wanted is None:
        if len(titles) == 1:
            return titles[0]
        raise InputError(f"'{run.path}' compares {listed}: say which with --method.")
    found = [title for title in titles if title.casefold() == wanted.casefold()]
    if not found:
        raise InputError(f"'{run.path}' has no method '{wanted}' but {listed}.")
    return found[0]


def _validated(
    folder: Path, recipe: Recipe, points: Sequence[FrontPoint]
) -> tuple[FrontPoint, ...] | None:
    """The points as measured on the validation split, if all of them were, with the same losses."""
    measured = folder / "evaluation-validation"
    if not (measured / "front.json").exists():
        return None
    theirs = Recipe.from_file(measured / "recipe.yaml")
    changed = [d.split(":")[0].split(".")[0] for d in recipe.differences(theirs)]
    if not set(changed) <= {"evaluation", "model", "train"}:
        return None
    front = Front.read(measured / "front.json")
    same = [point.folder for point in front.points] == [point.folder for point in points]
    return front.points if same else None


def _terms(candidate: Candidate, preference: Mapping[str, float]) -> dict[str, float]:
    """p_m f^m of every objective with p_m > 0; what is not a number is the worst."""
    losses = candidate.point.losses
    return {
        name: weight * (math.inf if math.isnan(losses[name]) else losses[name])
        for name, weight in preference.items()
        if weight > 0
    }
