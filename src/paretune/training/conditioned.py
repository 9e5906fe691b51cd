"""One adapter for all preferences: a LoRA whose rank dimension is gated by the preference.

``y = W x + s B (c(p) ∘ (A x))``, A and B of rank M·r and a fixed gate c (`paretune.moo.gates`).
Every row of a batch draws its own p, so one training covers the simplex. For any p the gate folds
into the columns of B: what is exported is an ordinary LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from paretune.data.sampling import PairCollator
from paretune.data.tokenization import TokenizedPairs
from paretune.errors import InputError
from paretune.moo.calibration import Calibration, Meaning, measure_path
from paretune.moo.gates import Basis, Gate, spread_preferences
from paretune.moo.preference import das_dennis
from paretune.moo.weightings import Linear, Weights
from paretune.results.gates import GATES, write_gates
from paretune.training.config import MultiObjectiveConfig
from paretune.training.gated_adapter import (
    GatedAdapter,
    conditioned_config,
    fold,
    fold_adapter,
)
from paretune.training.trainer import MultiObjectiveTrainer, Pairs


@dataclass
class ConditionedConfig(MultiObjectiveConfig):
    """Arguments of `ConditionedTrainer`.

    ``preference`` is left out: all of them are trained.
    """

    basis: Basis = field(
        default="centred",
        metadata={
            "help": "centred: a shared block and M - 1 blocks of trade-offs; objectives: a block "
            "for each objective."
        },
    )
    evaluated_preferences: int = field(
        default=3,
        metadata={
            "help": "Validation is at a fixed grid of preferences: so many along an edge of the "
            "simplex."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluated_preferences < 2:
            raise InputError(
                f"evaluated_preferences must be at least 2, not {self.evaluated_preferences}."
            )
        if self.early_stopping_patience > 0:
            self.metric_for_best_model = "eval_weighted"


class ConditionedTrainer(MultiObjectiveTrainer):
    """Trains one adapter for every preference; see the module.

    Each row of a batch has a preference p of its own, from a sequence that covers the simplex
    evenly; a step minimises the mean over rows of ``Σ_m p_m f_m`` with the gate at p.

    Arguments that are not listed are those of `MultiObjectiveTrainer`.

    Args:
        args: See `ConditionedConfig`.
        peft_config: The LoRA of a block: r and alpha are a block's; the adapter has rank M·r.

    Raises:
        InputError: for an adapter that cannot be gated, and as the base class does.
    """

    args: ConditionedConfig
    overall_measures = ("chebyshev", "weighted")

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: ConditionedConfig,
        train_dataset: Pairs,
        eval_dataset: Pairs | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        on_scored: Callable[[float], None] | None = None,
    ) -> None:
        names = list(train_dataset)
        if args.preference is not None:
            raise InputError(
                "A conditioned adapter is trained for all preferences: leave out args.preference, "
                "and give one to adapter(), evaluate() or save_adapter()."
            )
        # All objectives take part; the rows' own preferences are in their losses.
        args = copy(args)
        args.preference = dict.fromkeys(names, 1 / len(names))
        self.gate = Gate(len(names), args.basis)
        if peft_config is None or getattr(model, "peft_config", None) is not None:
            raise InputError(
                "A conditioned adapter is made by its trainer: give the base model, and the LoRA "
                "of a block as peft_config."
            )
        peft_config = conditioned_config(peft_config, len(names))
        super().__init__(
            model,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            peft_config,
            weighting=None,
            callbacks=callbacks,
            optimizers=optimizers,
            on_scored=on_scored,
        )
        self.gated = GatedAdapter(self.model, self.gate)
        self.gated.set(np.full(len(names), 1 / len(names)))
        self.data_collator = PairCollator(
            self._train_pairs, self._tokenizer.pad_token_id, by_row=True
        )
        self._micro_step = 0

    def _attach_reference(self, pairs: TokenizedPairs, title: str) -> None:
        gated: GatedAdapter | None = getattr(self, "gated", None)  # none while it is made
        even = np.full(len(self.objectives), 1 / len(self.objectives))
        # A training step leaves the gate at positions of its own batch's rows.
        with nullcontext() if gated is None else gated.at(even):
            super()._attach_reference(pairs, title)

    # ------------------------------------------------------------------ a step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """As the base class does, each row with the gate at its own preference."""
        if self._step_started is None:
            self._micro_step = 0
        p = self._draw(len(next(iter(inputs["pairs"].values()))["weight"]))
        self._micro_step += 1
        self.gated.set(p[inputs["row"].cpu().numpy()])
        weights = torch.tensor(p, dtype=torch.float32)
        pairs = {}
        for m, name in enumerate(self.live):
            pair = inputs["pairs"][name]
            w = pair["weight"]
            pairs[name] = {**pair, "weight": w * weights[:, m].to(w.device, w.dtype), "total": w}
        return super().training_step(model, {**inputs, "pairs": pairs}, num_items_in_batch)

    def _draw(self, rows: int) -> NDArray[np.float64]:
        """The preferences of a micro-batch's rows, (rows, M): known from where training stands."""
        done = self.state.global_step * self.args.gradient_accumulation_steps + self._micro_step
        place = done * self.accelerator.num_processes + self.accelerator.process_index
        size = self.args.per_device_train_batch_size
        return spread_preferences(place * size, rows, len(self.live), self.args.seed)

    def weigh(self, gramian: Tensor, losses: Tensor, preference: Tensor) -> Weights:
        """All ones: the rows' preferences are in the losses already."""
        return Linear()(gramian, losses, torch.ones_like(preference))

    # ------------------------------------------------------------------ measures

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Pairs | TokenizedPairs | None = None,
        ignore_keys: Sequence[str] | None = None,
        metric_key_prefix: str = "eval",
        position: Sequence[float] | None = None,
    ) -> dict[str, float]:
        """Metrics at one position of the gate, or their means over a fixed grid of preferences.

        Returns:
            As the base class does. Without `position` also ``<prefix>_weighted``, the mean over the
            grid of ``Σ_m p_m f_m``, which training lowers.
        """
        if position is not None:
            with self.gated.at(position):
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        given: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if given is None:
            raise InputError("There is nothing to evaluate on: give the trainer an eval_dataset.")
        pairs = given if isinstance(given, TokenizedPairs) else self.prepare(given)
        prefix = metric_key_prefix
        found = []
        for p in das_dennis(len(self.objectives), self.args.evaluated_preferences - 1):
            with self.gated.at(p):
                values = self.measure(pairs, prefix)
            losses = [values[f"{prefix}_{name}_loss"] for name in self.objectives]
            terms = [w * loss for w, loss in zip(p, losses, strict=True)]
            found.append(
                values | {f"{prefix}_weighted": sum(terms), f"{prefix}_chebyshev": max(terms)}
            )
        means = {key: float(np.mean([values[key] for values in found])) for key in found[0]}
        return self._note(means)

    # ------------------------------------------------------------------ use

    def adapter(self, position: Sequence[float]) -> dict[str, Tensor]:
        """A stock LoRA's weights with the gate at a position, exactly: c is folded into B.

        Args:
            position: A preference, or what a calibration gives for one; sums to one.

        Returns:
            PEFT's state dict of the adapter, rank M·r.
        """
        from peft import get_peft_model_state_dict  # peft takes seconds to import

        return fold(get_peft_model_state_dict(self.model), self.gate, position)

    def save_adapter(self, position: Sequence[float], folder: str | Path) -> None:
        """Write `adapter` as a folder that PEFT loads."""
        self.model.save_pretrained(str(folder))
        write_gates(Path(folder), self.gate, self.objectives)
        fold_adapter(Path(folder), Path(folder), position)
        (Path(folder) / GATES).unlink()

    def save_gated(self, folder: str | Path, calibration: Calibration | None = None) -> None:
        """Write the adapter with its gate; `gated_adapter.fold_adapter` makes any p of it."""
        self.model.save_pretrained(str(folder))
        write_gates(Path(folder), self.gate, self.objectives, calibration)

    def calibrate(
        self,
        eval_dataset: Pairs | TokenizedPairs | None = None,
        meaning: Meaning = "even",
        *,
        points: int = 5,
        extrapolate: float = 1.0,
    ) -> Calibration:
        """Measure losses at a few positions, by forward passes, and say what p means on them.

        The other arguments are those of `paretune.moo.calibration.measure_path`.

        Args:
            eval_dataset: By default the trainer's validation data.

        Raises:
            InputError: there is no validation data.
        """
        given: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if given is None:
            raise InputError("Calibration needs validation data: give the trainer an eval_dataset.")
        pairs = given if isinstance(given, TokenizedPairs) else self.prepare(given)
        return measure_path(
            partial(self.losses_at, pairs),
            len(self.objectives),
            meaning,
            points=points,
            extrapolate=extrapolate,
        )

    def losses_at(self, pairs: TokenizedPairs, position: Any) -> list[float]:
        """Mean losses of prepared pairs with the gate at a position, in the objectives' order."""
        with self.gated.at(position):
            values = self.measure(pairs, "gate")
        return [values[f"gate_{name}_loss"] for name in self.objectives]
