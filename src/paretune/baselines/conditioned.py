"""One training for every preference: a LoRA gated by p, calibrated, and folded at each p.

"Preference-conditioned" is what such models are called (Panacea, CLP, PARM); see
`paretune.training.conditioned` for the adapter, `paretune.moo.calibration` for the calibration.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from paretune.baselines.context import Baseline, Context, Watch, trained
from paretune.errors import InputError
from paretune.experiment.setup import make_trainer, training_arguments
from paretune.experiment.train_point import StepReport, free_memory, train_point
from paretune.experiment.weights import load_weights
from paretune.moo.calibration import Meaning
from paretune.moo.gates import Basis
from paretune.moo.preference import Preference
from paretune.recipes.section import Positive
from paretune.results.gates import GATES, read_gates, write_gates
from paretune.training import ConditionedConfig, ConditionedTrainer
from paretune.training.gated_adapter import fold_adapter

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe


class Conditioned(Baseline):
    """One adapter of M blocks for every preference; `lora.r` is the rank of a block."""

    steps: Positive | None = None
    """Optimiser steps of the one training; null is what the recipe's `train` says for a point."""
    basis: Basis = "centred"
    """`centred`: a shared block and M - 1 blocks of trade-offs; `objectives`: a block each."""
    calibrate: Meaning = "even"
    """What p means: `even` steps along the front of the validation losses, the `chebyshev` point
    of p in their ranges, or `none`: the gate itself."""
    calibration_points: Annotated[int, Field(ge=2)] = 5
    """Positions along an edge of the simplex at which the validation losses are measured."""
    extrapolate: Annotated[float, Field(ge=0, le=4)] = 1.0
    """How far beyond the simplex the calibration may look, in lengths of its edge (M = 2)."""

    def check_recipe(self, recipe: "Recipe") -> None:
        if recipe.lora is None:
            raise InputError("A conditioned adapter needs a lora section in the recipe.")
        if len(recipe.data.objectives) < 2:
            raise InputError("A conditioned adapter needs at least two objectives.")

    def train(self, context: Context, preferences: Sequence[Preference]) -> None:
        """Train and calibrate the one adapter, and fold it at every preference."""
        self.check_recipe(context.recipe)
        key = self._key(context)
        source = context.once(key, lambda folder: self._train(context, folder))
        if not (source / GATES).exists():
            self._calibrate(context, source)
        _, _, calibration = read_gates(source)
        assert calibration is not None
        for preference in preferences:
            folder = context.point(preference)
            if trained(folder):
                continue
            watch = Watch()
            position = calibration.position(preference.weights)
            fold_adapter(source, folder, position)
            named = dict(zip(preference.names, position, strict=True))
            context.finish(folder, steps=0, spend=watch.spend(), shared=[key], position=named)

    def _key(self, context: Context) -> str:
        options = self.model_dump_json().encode()
        return f"conditioned-{hashlib.sha256(options).hexdigest()[:8]}-seed{context.seed}"

    def _trainer(self, context: Context, folder: Path, callbacks: Sequence[Any] = ()) -> Any:
        recipe = context.recipe
        if self.steps is not None:
            steps = {"max_steps": self.steps}
            recipe = recipe.model_copy(update={"train": recipe.train | steps})
        args = training_arguments(
            recipe, None, context.seed, folder / "checkpoints", ConditionedConfig, basis=self.basis
        )
        return make_trainer(recipe, args, context.splits, callbacks, make=ConditionedTrainer)

    def _train(self, context: Context, folder: Path) -> None:
        context.report("prepare", 0.0)
        trainer = self._trainer(context, folder, [StepReport(context.report)])
        train_point(trainer, folder, context.report)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        del trainer
        free_memory()

    def _calibrate(self, context: Context, folder: Path) -> None:
        """Measure the validation losses along the gate; ``gates.json`` keeps them."""
        trainer = self._trainer(context, folder)
        load_weights(trainer.model, folder)
        calibration = trainer.calibrate(
            context.splits["validation"].pairs,
            self.calibrate,
            points=self.calibration_points,
            extrapolate=self.extrapolate,
        )
        write_gates(folder, trainer.gate, trainer.objectives, calibration)
        del trainer
        free_memory()
