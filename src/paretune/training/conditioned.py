"""One adapter for all preferences: a LoRA whose rank dimension is gated by the preference.

``y = W x + s B (c(p) ∘ (A x))``, A and B of rank M·r and a fixed gate c (`paretune.moo.gates`).
Every row of a batch has a p of its own, so one training covers the simplex. For any p the gate
folds into the columns of B: what is exported is an ordinary LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from paretune.data.objectives import by_objective
from paretune.data.sampling import PairCollator
from paretune.data.tokenization import TokenizedPairs
from paretune.errors import InputError
from paretune.gradients import ObjectiveGradients
from paretune.moo.calibration import Calibration, Meaning, measure_path
from paretune.moo.gates import Basis, Gate, Inner, spread_preferences
from paretune.moo.preference import das_dennis
from paretune.moo.weightings import ClampState, Linear, Weights
from paretune.results.gates import write_gates
from paretune.results.weights import GATES
from paretune.training.config import MultiObjectiveConfig
from paretune.training.gated_adapter import (
    GatedAdapter,
    conditioned_config,
    fold,
    fold_adapter,
)
from paretune.training.groups import divide, join, of_group, present
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
    inner: Inner = field(
        default="pwg",
        metadata={
            "help": "How the objectives are weighed at a preference. pwg: by p itself, every row "
            "at its own; clamp: by CLAMP with mu auto, at preference_groups of them in a step."
        },
    )
    preference_groups: int = field(
        default=2,
        metadata={
            "help": "inner=clamp: preferences of a step, among which its rows are divided; there "
            "are so many gradients of each objective."
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
        if self.preference_groups < 1:
            raise InputError(f"preference_groups must be at least 1, not {self.preference_groups}.")
        rows = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        if self.inner == "clamp" and self.preference_groups > rows:
            raise InputError(
                f"A step of {rows} rows has none for some of {self.preference_groups} "
                "preference_groups: lower them, or give larger batches."
            )
        if self.early_stopping_patience > 0:
            self.metric_for_best_model = "eval_weighted"


class ConditionedTrainer(MultiObjectiveTrainer):
    """Trains one adapter for every preference; see the module.

    Preferences are from a sequence that covers the simplex evenly. With ``inner="pwg"`` each row
    of a batch has its own, and a step minimises the mean over rows of ``Σ_m p_m f_m`` with the gate
    at p. With ``inner="clamp"`` the rows of a step are divided among K preferences; the step is the
    mean of K directions, each CLAMP's for the M gradients of its rows.

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
        train_dataset = by_objective(train_dataset)
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
        self._row_preferences = np.zeros((0, len(names)))
        self.clamp = ClampState() if args.inner == "clamp" else None
        if self.clamp is not None:
            losses = {
                of_group(name, k): self.losses[name]
                for k in range(args.preference_groups)
                for name in self.live
            }
            self.engine = ObjectiveGradients(self.model, losses, args.gradients, self.packing)
        self.engine.before = self._turn_gate

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
        given = inputs["pairs"]
        places = self._places(len(next(iter(given.values()))["weight"]))
        self._micro_step += 1
        p = self._draw(places)
        if self.clamp is None:
            pairs = self._weighted(given, p)
        else:
            count = self.args.preference_groups
            pairs = divide(given, self.live, places % count, count)
            self._live_preference = torch.tensor(self._group_preferences().flatten())
        self._row_preferences = p
        return super().training_step(model, {**inputs, "pairs": pairs}, num_items_in_batch)

    def _turn_gate(self, batch: Mapping[str, Any]) -> None:
        self.gated.set(self._row_preferences[batch["row"].cpu().numpy()])

    def _places(self, rows: int) -> NDArray[np.int64]:
        """The numbers of a micro-batch's rows among all rows of the training."""
        done = self.state.global_step * self.args.gradient_accumulation_steps + self._micro_step
        place = done * self.accelerator.num_processes + self.accelerator.process_index
        first = int(place * self.args.per_device_train_batch_size)
        return np.arange(first, first + rows)

    def _draw(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """The preferences of rows, (rows, M): known from their numbers."""
        if self.clamp is not None:
            return self._group_preferences()[places % self.args.preference_groups]
        return spread_preferences(int(places[0]), len(places), len(self.live), self.args.seed)

    def _weighted(self, given: Mapping[str, Any], p: NDArray[np.float64]) -> dict[str, Any]:
        """The pairs, those of each row weighed by its preference."""
        weights = torch.tensor(p, dtype=torch.float32)
        pairs = {}
        for m, name in enumerate(self.live):
            w = given[name]["weight"]
            own = w * weights[:, m].to(w.device, w.dtype)
            pairs[name] = {**given[name], "weight": own, "total": w}
        return pairs

    def _group_preferences(self) -> NDArray[np.float64]:
        """The preferences of this step's groups, (K, M)."""
        groups = self.args.preference_groups
        first = self.state.global_step * groups
        return spread_preferences(first, groups, len(self.live), self.args.seed)

    def weigh(self, gramian: Tensor, losses: Tensor, preference: Tensor) -> Weights:
        """pwg: all ones, as the preferences are in the losses; clamp: λ* of each group."""
        if self.clamp is None:
            return Linear()(gramian, losses, torch.ones_like(preference))
        found: dict[int, Weights] = {}
        for k, own in present(self.engine.bank.totals, len(self.live)):
            found[k] = self.clamp.step(gramian[own, own], losses[own], preference[own])
        return join(found, len(self.live), len(losses))

    def _record(
        self, weights: Weights, gramian: Tensor, losses: Tensor, elapsed: float, share: float
    ) -> None:
        if self.clamp is not None:  # means over the groups
            own = [part for _, part in present(self.engine.bank.totals, len(self.live))]
            gramian = torch.stack([gramian[part, part] for part in own]).mean(0)
            losses = torch.stack([losses[part] for part in own]).mean(0)
            lam, weight = (
                torch.stack([each[part] for part in own]).sum(0)
                for each in (weights.lam, weights.weights)
            )
            weights = replace(weights, lam=lam, weights=weight)
            assert self.clamp.mu_now is not None
            self._step_logs["clamp/mu"].append(self.clamp.mu_now)
        super()._record(weights, gramian, losses, elapsed, share)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        clamp = {} if self.clamp is None else {"clamp": self.clamp.state_dict()}
        return {**super().state_dict(), **clamp}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.clamp is not None:
            self.clamp.load_state_dict(state["clamp"])

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
