"""One training for every preference: a LoRA gated by p, calibrated, and folded at each p.

"Preference-conditioned" is what such models are called (Panacea, CLP, PARM); see
`paretune.training.conditioned` for the adapter, `paretune.moo.calibration` for the calibration.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paretune.baselines.context import Context
from paretune.baselines.dial import Dial
from paretune.baselines.single_objective import with_steps
from paretune.experiment.setup import make_trainer, training_arguments
from paretune.experiment.train_point import StepReport, free_memory, train_point
from paretune.moo.gates import Gate
from paretune.moo.preference import Preference
from paretune.recipes.dial import ConditionedOptions
from paretune.recipes.schema import Recipe
from paretune.results.gates import write_gates
from paretune.results.weights import ADAPTER
from paretune.training import ConditionedConfig, ConditionedTrainer


class Conditioned(ConditionedOptions, Dial):
    """One adapter of M blocks for every preference; `lora.r` is the rank of a block."""

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
        later = {"inner", "preference_groups", "evaluated_preferences"}
        later &= self.model_dump(exclude_defaults=True).keys()
        options = self.model_dump_json(include={"steps", "basis", *later}).encode()
        return f"conditioned-{hashlib.sha256(options).hexdigest()[:8]}-seed{context.seed}"

    def training_arguments(self, recipe: Recipe, seed: int, checkpoints: Path) -> Any:
        """The arguments of the one training.

        Raises:
            InputError: a key of the recipe's train section that it has no use for.
        """
        recipe, own = with_steps(recipe, self.steps), self.arguments()
        return training_arguments(recipe, None, seed, checkpoints, ConditionedConfig, **own)

    def _train(self, context: Context, folder: Path) -> None:
        context.report("prepare", 0.0)
        recipe, checkpoints = context.recipe, folder / "checkpoints"
        args = self.training_arguments(recipe, context.seed, checkpoints)
        trainer = make_trainer(
            recipe, args, context.splits, [StepReport(context.report)], make=ConditionedTrainer
        )
        train_point(trainer, folder, context.report)
        shutil.rmtree(checkpoints, ignore_errors=True)
        del trainer
        free_memory()
