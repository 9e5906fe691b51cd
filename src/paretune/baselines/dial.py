"""Methods with one adapter for every p: its gate calibrated on validation data, folded at each p.

The adapter is a gated LoRA (`paretune.training.gated_adapter`): a conditioned one, or the adapters
of a soup side by side, whose gate is the weight of each.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.baselines.context import Baseline, Context, Watch, finish_point
from paretune.data.tokenization import TokenizedPairs
from paretune.experiment.setup import make_trainer, training_arguments
from paretune.experiment.train_point import wait_for_all
from paretune.experiment.weights import load_weights
from paretune.files import main_process, read_object
from paretune.moo.calibration import measure_path
from paretune.moo.preference import Preference
from paretune.recipes.dial import DialOptions
from paretune.results.gates import read_calibration, read_gates, write_gates
from paretune.results.weights import ADAPTER, TRAINING, check_weights
from paretune.training import ConditionedConfig, ConditionedTrainer
from paretune.training.gated_adapter import fold_adapter

if TYPE_CHECKING:
    from paretune.data import PreferenceData
    from paretune.recipes.schema import Recipe


class Dial(DialOptions, Baseline):
    """A method with one gated adapter for every p."""

    @property
    def steerable(self) -> bool:
        return True

    @property
    def divisible(self) -> bool:
        return True

    def turn(
        self,
        context: Context,
        preferences: Sequence[Preference],
        write: Callable[[Path], None],
        shared: Sequence[str],
    ) -> None:
        """Calibrate the gated adapter, once, and fold it at every preference.

        Args:
            write: Puts the adapter with its gate into a folder; called in one process.
            shared: Keys of what it is made of (see `Context.once`).
        """
        options = self.model_dump_json(include=set(Dial.model_fields))
        made_of = "\n".join([type(self).__name__, options, *sorted(shared)])
        key = f"dial-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}-seed{context.seed}"
        dial = context.once(key, lambda folder: self._calibrate(context, folder, write, shared))
        for preference in context.untrained(preferences):
            fold_point(dial, preference, context.point(preference))
        wait_for_all()

    def _calibrate(
        self,
        context: Context,
        folder: Path,
        write: Callable[[Path], None],
        shared: Sequence[str],
    ) -> None:
        """Measure the validation losses along the gate; ``gates.json`` keeps them."""
        context.report("prepare", 0.0)
        if main_process():
            write(folder)
        wait_for_all()
        trainer, (pairs,) = load_dial(
            context.recipe, folder, [context.splits["validation"]], context.seed
        )
        measured, watch = 0, Watch()

        def measure(position: Any) -> list[float]:
            nonlocal measured
            measured += 1
            return trainer.losses_at(pairs, position)

        calibration = measure_path(
            measure,
            len(trainer.objectives),
            self.calibrate,
            points=self.calibration_points,
            extrapolate=self.extrapolate,
        )
        tokens = sum(len(sequence.input_ids) for sequence in pairs.sequences)
        batches = -(-len(pairs.sequences) // trainer.args.eval_batch_size)
        spend = watch.spend(reference_tokens=measured * tokens, passes=measured * batches)
        if main_process():
            write_gates(folder, trainer.gate, trainer.objectives, calibration)
        context.finish(folder, steps=0, spend=spend, shared=shared)


def fold_point(dial: Path, preference: Preference, folder: Path) -> None:
    """Fold the gated adapter in `dial` where its calibration has the preference, into `folder`.

    Leaves ``training.json`` there, as a training does.

    Raises:
        InputError: the adapter or its gate is damaged, or has no calibration.
    """
    calibration = read_calibration(dial, preference.names)
    watch = Watch()
    position = calibration.position(preference.weights)
    if main_process():
        check_weights(dial)
        fold_adapter(dial, folder, position)
        made_of = read_object(dial / TRAINING).get("shared", [])
        finish_point(
            folder,
            steps=0,
            spend=watch.spend(),
            shared=[*made_of, dial.name],
            place=dial.parent,
            position=dict(zip(preference.names, position, strict=True)),
        )


def load_dial(
    recipe: "Recipe", folder: Path, data: "Sequence[PreferenceData]", seed: int
) -> tuple[ConditionedTrainer, list[TokenizedPairs]]:
    """The gated adapter in a folder on the recipe's model, and data to measure it on, prepared.

    Raises:
        InputError: there is no gated adapter, or it does not fit the recipe.
    """
    gate, _, _ = read_gates(folder)
    saved = read_object(folder / ADAPTER[0])
    assert recipe.lora is not None
    block = {"r": saved["r"] // gate.n_objectives, "alpha": saved["lora_alpha"] / gate.n_objectives}
    # The trainer wants training data; what is measured will do. Nothing is trained, so its rows
    # need no counterparts.
    changes = {
        "lora": recipe.lora.model_copy(update=block),
        "train": recipe.train | {"sampling": "independent"},
    }
    recipe = recipe.model_copy(update=changes)
    args = training_arguments(
        recipe, None, seed, folder / "checkpoints", ConditionedConfig, basis=gate.basis
    )
    splits = {"train": data[0], "validation": data[0]}
    trainer: Any = make_trainer(recipe, args, splits, make=ConditionedTrainer)
    prepared = [trainer.prepare(each.pairs) for each in data]  # before the reference is changed
    load_weights(trainer.model, folder)
    return trainer, prepared
