"""How much each training set should weigh, for the trade-off between criteria that is wanted."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from paretune.data.sources import open_rows
from paretune.data.tokenization import TokenSequence, tokenize_responses
from paretune.errors import InputError
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.polish import polish_lower
from paretune.moo.bilevel.problem import StochasticBilevelProblem
from paretune.moo.bilevel.stochastic_wc_augmented import StochasticWCAugmented
from paretune.moo.solvers.multipliers import StepwiseMultipliers
from paretune.training.base import BaseTrainer, check_launch, load_trainable
from paretune.training.bilevel_objectives import LanguageModelObjectives
from paretune.training.checks import check_evaluation, check_tokens
from paretune.training.config import DataWeightingConfig
from paretune.training.reference_cache import model_digest, sequences_digest
from paretune.training.responses import Batches, Draw, Part, ResponseRows, Rows, all_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolishReport:
    """The lower level before and after it was solved again.

    Attributes:
        losses: Per criterion, the loss after.
        lower_gradient_norm_before, lower_gradient_norm_after: ‖∇_y g‖ over all training rows.
        converged: Whether the latter is at most the tolerance.
        n_gradients: What it cost, in gradients of g over all training rows.
    """

    losses: dict[str, float]
    lower_gradient_norm_before: float
    lower_gradient_norm_after: float
    converged: bool
    n_gradients: int


class DataWeightingTrainer(BaseTrainer):
    """Learns the weights of training sets together with the model that is trained on them.

    It looks for ``min_x max_s p_s f_s(y(x))``, where y(x) minimises the training sets' losses,
    weighted by softmax(x), and f_s is the loss on the validation rows of a criterion: multi-
    objective bilevel learning (WC-Penalty paper, Section 5) by the first-order augmented Lagrangian
    `StochasticWCAugmented`. A step takes S evaluations, one combined gradient of the criteria, one
    gradient of each training set, and one product with second derivatives (two gradients of each
    set); they are formed one after another in the memory of a plain gradient. y goes by the
    trainer's optimiser, schedule and clipping, x by an Adam of its own.

    The model's losses on the validation rows are no honest measure while ‖∇_y g‖ is above zero,
    since y is trained on them: compare `evaluate` before and after `polish`.

    Args:
        model: A causal language model, its name or path, or a PEFT model whose adapter to train.
        args: See `DataWeightingConfig`.
        train_dataset: Per training set, rows with ``prompt`` and ``completion`` (plain or
            conversational).
        validation_dataset: The same per criterion; the default of `evaluate`, too.
        processing_class: The tokenizer; loaded with the model if that is given by name.
        peft_config: Adds an adapter to train; without one all weights are trained.
        callbacks: As in ``transformers.Trainer``.
        optimizers: As in ``transformers.Trainer``, for y.

    Raises:
        InputError: for data, preferences or settings that do not fit together.
    """

    args: DataWeightingConfig

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: DataWeightingConfig,
        train_dataset: Rows,
        validation_dataset: Rows,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        check_launch(args)
        if len(train_dataset) < 2:
            raise InputError(
                f"train_dataset has {len(train_dataset) or 'no'} training set"
                f"{'' if train_dataset else 's'}: there must be two or more to weigh."
            )
        self.preference = args.checked_preference(validation_dataset, "validation data")
        if len(self.preference.live) < 2:
            raise InputError(
                "There is one criterion with a positive weight: data weighting needs two or more."
            )
        self.sets, self.criteria = tuple(train_dataset), self.preference.names
        check_evaluation(args, self.criteria, data=True, kinds=("loss",))
        model, tokenizer = load_trainable(model, processing_class, peft_config, args)
        tokenize = partial(_tokenize, tokenizer=tokenizer, args=args)
        sets = tokenize({name: train_dataset[name] for name in self.sets}, kind="set")
        criteria = tokenize({n: validation_dataset[n] for n in self.criteria}, kind="criterion")
        live = {part: criteria[part] for part in criteria if part.name in self.preference.live}
        rows = ResponseRows({**sets, **live}, 1 + args.independent_batches, args.seed)
        super().__init__(
            model,
            args,
            tokenizer,
            rows,
            partial(rows.collate, tokenizer.pad_token_id),
            criteria,
            callbacks,
            optimizers,
        )
        self._set_parts = sets
        self._model_digest = model_digest(self.model)
        for sequences in (*sets.values(), *criteria.values()):
            check_tokens(self.model, tokenizer, sequences)
        in_place = args.hvp == "finite_difference" or bool(args.gradient_checkpointing)
        several = self.accelerator.num_processes > 1
        self.levels = LanguageModelObjectives(self.model, in_place, self._join if several else None)
        self._problem = StochasticBilevelProblem(
            upper=self.levels.upper(self.preference.live),
            lower=self.levels.lower(self.sets, args.ridge),
            draw_upper=lambda size, generator: self._drawn[0],
            draw_lower=lambda size, generator: self._drawn.pop(0),
            full_upper=None,
            full_lower=None,
            hvp=args.hvp,
        )
        self.oracle = Oracle(self._problem, independent_batches=args.independent_batches)
        self.x = torch.zeros(len(self.sets), dtype=torch.float64)
        """Logits of the sets' weights."""
        self._x_optimizer = torch.optim.Adam([self.x], lr=args.x_learning_rate)
        self.multipliers: StepwiseMultipliers | None = None
        """Those of the augmented Lagrangian; None before the first step."""
        self._micro: list[list[Draw]] = []
        self._drawn: list[Batches] = []

    @property
    def set_weights(self) -> dict[str, float]:
        """The weight of each training set, softmax(x)."""
        return dict(zip(self.sets, self.x.softmax(0).tolist(), strict=True))

    # ------------------------------------------------------------------ a step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Keep a micro-batch; with the last one, take a step on x and set y's gradient."""
        if self._step_started is None:
            self._step_started, self._micro = time.perf_counter(), []
        draws: Any = self._prepare_inputs(inputs)["draws"]
        self._micro.append(draws)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        self.model.train()
        self._drawn = [Batches.of(draws) for draws in zip(*self._micro, strict=True)]
        y = self.levels.vector()
        try:
            chebyshev = self._step(y)
        finally:
            self.levels.load(y)  # to the bit
        return torch.tensor(chebyshev, device=self.args.device)

    def _step(self, y: Tensor) -> float:
        """One step of `StochasticWCAugmented`, y's optimiser being the trainer's.

        Returns max_s p_s f_s; 0 where the step is skipped.
        """
        oracle, x = self.oracle, self.x
        weights = [self.preference[name] for name in self.preference.live]
        oracle.resample()
        spent = oracle.n_gradients
        values: list[float] = oracle.values(x, y).tolist()
        h = oracle.lower_y(x, y)
        losses = {name: self.levels.last[Part("set", name)] for name in self.sets}
        size = float(h.norm())
        if not all(map(math.isfinite, (*values, *losses.values(), size))):
            self._skip_step()
            return 0.0
        if self.multipliers is None:
            self.multipliers = self._first_multipliers(y)
        chebyshev = [p * f for p, f in zip(weights, values, strict=True)]
        omega = self.multipliers.weights(chebyshev)
        fx, fy = oracle.upper(x, y, [w * p for w, p in zip(omega, weights, strict=True)])
        gx, gy = oracle.products(x, y, self.multipliers.direction(h))
        gx, gy = gx + fx, gy + fy
        if not (bool(gx.isfinite().all()) and bool(gy.isfinite().all())):
            self._skip_step()
            return 0.0
        self.nonfinite_steps = 0
        x.grad = gx
        self._x_optimizer.step()
        self.levels.set_gradient(gy)
        self.multipliers.update(h, omega)
        live = self.preference.live
        self._record(
            {f"train/{name}/loss": value for name, value in losses.items()}
            | {f"validation/{n}/loss": f for n, f in zip(live, values, strict=True)}
            | {f"set_weight/{name}": value for name, value in self.set_weights.items()}
            | {f"omega/{n}": w for n, w in zip(live, omega, strict=True)}
            | {"lower_gradient_norm": size, "spend/gradients": oracle.n_gradients - spent}
        )
        return max(chebyshev)

    def _first_multipliers(self, y: Tensor) -> StepwiseMultipliers:
        args = self.args
        method = StochasticWCAugmented(u=args.u, v=args.v, sigma=args.sigma, tau=args.tau)
        live = self.preference.live
        weights = tuple(self.preference[name] for name in live)
        return method.begin(self.oracle, weights, [0.0] * len(live), self.x, y)

    def _record(self, values: dict[str, float]) -> None:
        values["time/step"] = self._count(True)
        if self.oracle.products_by.step is not None:
            values["product_step"] = self.oracle.products_by.step
        for key, value in values.items():
            self._step_logs[key].append(float(value))

    def _join(self, value: Tensor) -> Tensor:
        """The mean over processes; reductions may differ in the last bit, steps must not."""
        shared = value.detach().to(self.accelerator.device, copy=True)
        mean: Tensor = broadcast(self.accelerator.reduce(shared, "mean"))
        return mean.to(value.device)

    # ------------------------------------------------------------------ measures

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Rows | None = None,
        ignore_keys: Sequence[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The loss of every criterion as the model is, and ``max_s p_s f_s``.

        Args:
            eval_dataset: Rows per criterion, such as test rows; by default the validation rows.

        Returns:
            ``<prefix>_<criterion>_loss`` and ``<prefix>_chebyshev``.
        """
        result: dict[str, float] = {}
        highest = 0.0
        for part, sequences in self._criteria(eval_dataset).items():
            logps = self._score(sequences, "evaluating").double()
            lengths = torch.tensor([sequence.completion_length for sequence in sequences])
            loss = -float((logps / lengths).mean())
            result[f"{metric_key_prefix}_{part.name}_loss"] = loss
            highest = max(highest, self.preference[part.name] * loss)
        return self._note(result | {f"{metric_key_prefix}_chebyshev": highest})

    def polish(
        self, steps: int = 20, tol: float = 1e-4, eval_dataset: Rows | None = None
    ) -> PolishReport:
        """Solve the lower level again from the model as it is, the sets' weights held fixed.

        The model keeps the result, whose losses are those that training on the weighted sets alone
        leads to, as far as ‖∇_y g‖ went down. g is that of all training rows, without dropout. Each
        step of L-BFGS goes through them at least once.

        Args:
            steps: The budget.
            tol: On ‖∇_y g‖.
            eval_dataset: As in `evaluate`, for the report's losses.
        """
        full = partial(
            all_of,
            pad_token_id=self._tokenizer.pad_token_id,
            size=self.args.per_device_eval_batch_size,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        criteria = {
            part: rows
            for part, rows in self._criteria(eval_dataset).items()
            if part.name in self.preference.live
        }
        upper, lower = (self._prepare_batches(full(part)) for part in (criteria, self._set_parts))
        training = self.model.training
        self.model.eval()
        y = self.levels.vector()
        try:
            with self.accelerator.autocast():
                done = polish_lower(self._problem.on(upper, lower), self.x, y, steps, tol)
            y = done.y
        finally:
            self.levels.load(y)
            self.model.train(training)
        return PolishReport(
            dict(zip(self.preference.live, done.objectives.tolist(), strict=True)),
            done.lower_gradient_norm_before,
            done.lower_gradient_norm_after,
            done.converged,
            done.n_gradients,
        )

    def _criteria(self, dataset: Rows | None) -> dict[Part, list[TokenSequence]]:
        if dataset is None:
            known: Any = self.eval_dataset
            return dict(known)
        for name in self.criteria:
            if name not in dataset:
                raise InputError(f"The evaluation data has no rows for criterion {name!r}.")
        ordered = {name: dataset[name] for name in self.criteria}
        return _tokenize(ordered, self._tokenizer, self.args, "criterion")

    def _prepare_batches(self, batches: Batches) -> Batches:
        draws: Any = self._prepare_inputs({"draws": list(batches.draws)})["draws"]
        return Batches(draws, batches.rows)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        state = {
            **super().state_dict(),
            "sets": list(self.sets),
            "products": vars(self.oracle.products_by).copy(),
            "x": self.x.clone(),
        }
        for name, value in self._x_optimizer.state[self.x].items():
            state[f"x_optimizer.{name}"] = value
        if self.multipliers is not None:
            multipliers = self.multipliers.state_dict()
            state["nu"] = multipliers.pop("nu")
            state["multipliers"] = multipliers
        return state

    def identity(self) -> dict[str, Any]:
        criteria: Any = self.eval_dataset
        parts = {**self._set_parts, **criteria}
        return {
            **super().identity(),
            "sets": list(self.sets),
            "model": self._model_digest,
            "data": {f"{part.kind} {part.name}": sequences_digest(s) for part, s in parts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["sets"] != list(self.sets):
            raise InputError(
                f"The checkpoint is of the training sets {', '.join(state['sets'])}, not of "
                f"{', '.join(self.sets)}: give the same sets in the same order."
            )
        super().load_state_dict(state)
        vars(self.oracle.products_by).update(state["products"])
        self.x.copy_(state["x"])
        moments = {k.removeprefix("x_optimizer."): v for k, v in state.items() if "x_opt" in k}
        if moments:
            self._x_optimizer.state[self.x].update(moments)
        if "multipliers" in state:
            saved = state["multipliers"]
            self.multipliers = StepwiseMultipliers(len(saved["w0"]), 1.0, 1.0, 1.0)
            nu = state["nu"].to(self.args.device)
            self.multipliers.load_state_dict({**saved, "nu": nu})


def _tokenize(
    dataset: Mapping[str, Any], tokenizer: Any, args: DataWeightingConfig, kind: Any
) -> dict[Part, list[TokenSequence]]:
    """Sequences per part; what is left out for its length is told."""
    parts = {}
    for name, rows in dataset.items():
        title = f"training set {name!r}" if kind == "set" else f"validation set {name!r}"
        sequences, dropped = tokenize_responses(
            open_rows(rows), tokenizer, title, args.max_length, args.overlong
        )
        if dropped:
            logger.warning(
                "%d of %d rows of the %s are longer than max_length=%s and are left out.",
                dropped,
                dropped + len(sequences),
                title,
                args.max_length,
            )
        parts[Part(kind, name)] = sequences
    return parts
