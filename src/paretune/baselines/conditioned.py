"""One training for every preference: a LoRA gated by p, calibrated, and folded at each p.

"Preference-conditioned" is what such models are called (Panacea, CLP, PARM); see
`paretune.training.conditioned` for the adapter, `paretune.moo.calibration` for the calibration.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paretune.baselines.context import Context
from paretune.baselines.dial import Dial
from paretune.baselines.single_objective import with_steps
from paretune.errors import InputError
from paretune.experiment.setup import make_trainer, training_arguments
from paretune.experiment.train_point import StepReport, free_memory, train_point
from paretune.moo.gates import Basis, Gate
from paretune.moo.preference import Preference
from paretune.recipes.section import Positive
from paretune.results.gates import write_gates
from paretune.results.weights import ADAPTER
from paretune.training import ConditionedConfig, ConditionedTrainer
from paretune.training.conditioned import Inner

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe


class Conditioned(Dial):
    """One adapter of M blocks for every preference; `lora.r` is the rank of a block."""

    steps: Positive | None = None
    """Optimiser steps of the one training; null is what the recipe's `train` says for a point."""
    basis: Basis = "centred"
    """`centred`: a shared block and M - 1 blocks of trade-offs; `objectives`: a block each."""
    inner: Inner = "pwg"
    """How objectives are weighed at a preference: `pwg`, by p itself, every row of a batch at its
    own; `clamp`, by CLAMP with mu auto, at `preference_groups` of them in a step."""
    preference_groups: Positive = 2
    """`inner: clamp`: preferences of a step, among which its rows are divided."""

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
        objectives = context.recipe.data.objectives

        def write(folder: Path) -> None:
            for name in ADAPTER:
                shutil.copyfile(source / name, folder / name)
            write_gates(folder, Gate(len(objectives), self.basis), objectives)

        self.turn(context, preferences, write, [key])

    def _key(self, context: Context) -> str:
        # Of the training alone; options that came later count where they are set.
        later = {"inner", "preference_groups"} & self.model_dump(exclude_defaults=True).keys()
        options = self.model_dump_json(include={"steps", "basis", *later}).encode()
        return f"conditioned-{hashlib.sha256(options).hexdigest()[:8]}-seed{context.seed}"

    def _train(self, context: Context, folder: Path) -> None:
        context.report("prepare", 0.0)
        recipe, checkpoints = with_steps(context.recipe, self.steps), folder / "checkpoints"
        options = self.model_dump(include={"basis", "inner", "preference_groups"})
        args = training_arguments(
            recipe, None, context.seed, checkpoints, ConditionedConfig, **options
        )
        trainer = make_trainer(
            recipe, args, context.splits, [StepReport(context.report)], make=ConditionedTrainer
        )
        train_point(trainer, folder, context.report)
        shutil.rmtree(checkpoints, ignore_errors=True)
        del trainer
        free_memory()
