"""Training on one objective: its adapter alone, or its pairs on the rows that all methods see."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from paretune.baselines.budget import mean_row_tokens, training_steps
from paretune.baselines.context import Context
from paretune.data.sampling import PairRows, Row
from paretune.data.tokenization import TokenizedPairs
from paretune.errors import InputError
from paretune.experiment.setup import build_trainer
from paretune.experiment.train_point import StepReport, free_memory, train_point
from paretune.files import read_objects
from paretune.gradients import ObjectiveGradients
from paretune.losses import PreferenceLoss
from paretune.moo.preference import Preference
from paretune.moo.weightings import Linear
from paretune.recipes.schema import Recipe
from paretune.training import MultiObjectiveTrainer


def linear(recipe: Recipe, **update: Any) -> Recipe:
    """The recipe with linear weighting, and other sections replaced."""
    return recipe.model_copy(update={"method": Linear(), **update})


def with_steps(recipe: Recipe, steps: int | None) -> Recipe:
    """The recipe with so many optimiser steps; None is what its `train` says."""
    if steps is None:
        return recipe
    return recipe.model_copy(update={"train": recipe.train | {"max_steps": steps}})


def corner(objective: str, objectives: Sequence[str]) -> Preference:
    """The preference with all weight on one objective."""
    return Preference.of({name: float(name == objective) for name in objectives})


def single_objective(context: Context, objective: str, steps: int | None = None) -> str:
    """Train the adapter of one objective alone, once for all methods.

    It is what every method based on preference losses gives at this corner of the simplex.

    Args:
        steps: Optimiser steps; None is what the recipe's `train` says for a point.

    Returns:
        Its key: the adapter is in ``context.shared / key``.
    """

    def build(folder: Path) -> None:
        context.report("prepare", 0.0)
        trainer = build_trainer(
            linear(with_steps(context.recipe, steps)),
            corner(objective, context.recipe.data.objectives),
            context.seed,
            context.splits,
            folder / "checkpoints",
            [StepReport(context.report)],
        )
        train_point(trainer, folder, context.report)
        del trainer
        free_memory()

    length = "" if steps is None else f"-{steps}steps"
    key = f"single-{objective}{length}-seed{context.seed}"
    context.once(key, build)
    return key


def loss_range(folder: Path, objective: str) -> tuple[float, float]:
    """Where the training of a single objective's adapter ended, and where it began.

    Returns:
        The mean training loss of the last third of the steps, and that of the first step.

    Raises:
        InputError: the loss did not fall, so that there is no range.
    """
    rows = read_objects(folder / "log.jsonl", nan=True)
    losses = [row[f"{objective}/loss"] for row in rows if f"{objective}/loss" in row]
    last = losses[-max(1, len(losses) // 3) :]
    ideal, nadir = sum(last) / len(last), losses[0]
    if not ideal < nadir:
        raise InputError(
            f"Trained alone, the loss of '{objective}' went from {nadir:.3g} to {ideal:.3g}: there "
            "is no range to normalise by; train longer, or leave out range_normalised."
        )
    return ideal, nadir


class OneObjectiveTrainer(MultiObjectiveTrainer):
    """Trains on one objective's pairs, in the rows that all live objectives make at `preference`.

    So it sees what the methods see that use all of them. Where objectives have responses of their
    own its steps hold fewer tokens, and there are as many more of them. Its validation loss is
    that of its objective.

    Args:
        trained: The objective, with a positive weight.
        loss: What it minimises.
    """

    def __init__(self, *args: Any, trained: str, loss: PreferenceLoss, **named: Any) -> None:
        super().__init__(*args, **named)
        shared: Any = self.train_dataset
        rows = shared.rows
        assert isinstance(rows, PairRows)
        tokens = partial(mean_row_tokens, self._train_pairs, rows)
        steps = training_steps(self.args, len(rows))
        self.args.max_steps = round(steps * tokens(self.live) / tokens((trained,)))
        self.data_collator = partial(_only, trained, self.data_collator)
        self.objectives = self.live = (trained,)
        self.preference = Preference.of({trained: 1.0})
        self._live_preference = self._live_preference.new_ones(1)
        self.losses = {trained: loss}
        self.engine = ObjectiveGradients(self.model, self.losses, self.args.gradients, self.packing)

    @property
    def prepared(self) -> dict[str, TokenizedPairs]:
        """The tokenised ``train`` and, if it is evaluated, ``validation`` split."""
        validation: Any = self.eval_dataset
        found = {"train": self._train_pairs, "validation": validation}
        return {split: pairs for split, pairs in found.items() if pairs is not None}

    def implicit_rewards(self, pairs: TokenizedPairs, beta: float) -> Tensor:
        """``beta`` times the log-ratio to the reference of every sequence, ``(n,)`` float32."""
        if pairs.reference is None:
            raise InputError("Implicit rewards need a loss with a reference: loss.name=dpo.")
        return beta * (self._score(pairs.sequences, "rewards") - pairs.reference)


def _only(objective: str, collate: Any, rows: Sequence[Row]) -> dict[str, Any]:
    collated: dict[str, Any] = collate([{objective: row[objective]} for row in rows])
    return collated
