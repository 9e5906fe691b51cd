"""How much each training set should weigh, for the trade-off between criteria that is wanted."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from paretune.data.tokenization import TokenSequence
from paretune.errors import InputError
from paretune.losses import Scored
from paretune.models.products import fast_products
from paretune.moo.bilevel.polish import polish_lower
from paretune.moo.bilevel.problem import BatchTerm, BilevelProblem, Term
from paretune.training.augmented_steps import AugmentedSteps
from paretune.training.base import BaseTrainer
from paretune.training.bilevel_objectives import LanguageModelObjectives
from paretune.training.checks import check_evaluation, check_tokens
from paretune.training.data_weighting_config import DataWeightingConfig
from paretune.training.lookahead import (
    Lookahead,
    LookaheadCollator,
    part_loss,
    response_pairs,
)
from paretune.training.part_rows import PairSequence, distinct, pairs_refused, tokenize_rows
from paretune.training.reference import Reference
from paretune.training.reference_cache import model_digest, sequences_digest
from paretune.training.responses import Batches, Part, ResponseRows, Rows, all_of, hold_out
from paretune.training.set_weights import SetWeights
from paretune.training.trainable import check_launch, load_trainable
from paretune.training.weighting_steps import WeightingSteps

logger = logging.getLogger(__name__)

_UNEQUAL = 1.5  # times as many rows in the largest set as in the smallest


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

    @property
    def lowered(self) -> bool:
        """Whether ‖∇_y g‖ fell; where it did not, the losses are no more honest than before."""
        return self.lower_gradient_norm_after < self.lower_gradient_norm_before


class DataWeightingTrainer(BaseTrainer):
    """Learns the weights of training sets together with the model that is trained on them.

    It looks for ``min_x max_s p_s f_s(y(x))``, where y(x) comes of training on the sets' losses,
    weighted by softmax(x), and f_s is the loss on the validation rows of a criterion: multi-
    objective bilevel learning (WC-Penalty paper, Section 5). How x and y move is `args.method`:

    - ``lookahead`` (`paretune.training.lookahead`): y goes by the trainer's optimiser on the
      weighted training loss alone, x by an Adam of its own along what that step does to the
      criteria. y(x) is then where training leads from here on, not a minimiser.
    - ``wc_augmented``, ``wc_penalty`` (`paretune.training.augmented_steps`): the paper's, by the
      augmented Lagrangian or the penalty of ∇_y g = 0. y is trained on the validation rows as far
      as ‖∇_y g‖ stays above zero: compare `evaluate` before and after `polish`.

    Of each criterion's validation rows the share `args.held_out` drives nothing and is what
    `evaluate` and `polish` report.

    Args:
        model: A causal language model, its name or path, or a PEFT model whose adapter to train.
        args: See `DataWeightingConfig`.
        train_dataset: Per training set, rows with ``prompt`` and ``completion`` (plain or
            conversational), or ``prompt``, ``chosen`` and ``rejected`` (their loss is DPO's), or
            ``text``; or a file or hub id that has such rows.
        validation_dataset: The same per criterion.
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
        lookahead = args.method == "lookahead"
        moving = len(self.preference.live) if args.x_learning_rate > 0 else 0
        self.x_every = _steps_to_one_of_x(args, moving, len(self.sets))
        """Steps to each step of x."""
        self.initial_weights: Callable[[], SetWeights] = partial(
            SetWeights,
            self.sets,
            args.x_learning_rate * self.x_every,
            args.initial_weights,  # type: ignore[arg-type]
            args.weight_bounds,  # type: ignore[arg-type]
            args.entropy,
        )
        """The weights as they are before the first step."""
        self.weights = self.initial_weights()
        check_evaluation(args, self.criteria, data=True, kinds=("loss",))
        model, tokenizer = load_trainable(model, processing_class, peft_config, args)
        tokenize = partial(_tokenize, tokenizer=tokenizer, args=args)
        sets = tokenize({name: train_dataset[name] for name in self.sets}, kind="set")
        criteria = tokenize({n: validation_dataset[n] for n in self.criteria}, kind="criterion")
        driving, reported = hold_out(criteria, args.held_out, args.seed)
        live = {part: driving[part] for part in driving if part.name in self.preference.live}
        if lookahead and not moving:
            live = {}  # nothing asks for them
        parts = {**sets, **live}
        pairs = response_pairs(parts)
        rows = ResponseRows(parts, 1 + args.independent_batches, args.seed)
        super().__init__(
            model,
            args,
            tokenizer,
            rows,
            LookaheadCollator(pairs, tokenizer.pad_token_id)
            if lookahead
            else partial(rows.collate, tokenizer.pad_token_id),
            reported,
            [*(callbacks or ()), _Moved(self)],
            optimizers,
        )
        self._set_parts, self._driving = sets, driving
        self._model_digest = model_digest(self.model)
        every = [*chain(*sets.values(), *criteria.values())]
        check_tokens(self.model, tokenizer, distinct(every))
        self._reference: Reference | None = None
        if any(isinstance(each, PairSequence) for each in every):
            if not lookahead:
                raise pairs_refused(args.method)
            self._reference = Reference(self.model)
            pairs.reference = self._score(pairs.sequences, "reference")
        in_place = args.hvp == "finite_difference" or bool(args.gradient_checkpointing)
        several = self.accelerator.num_processes > 1
        self.levels = LanguageModelObjectives(self.model, in_place, self._join if several else None)
        self._terms = (
            self.levels.upper(self.preference.live),
            self.levels.lower(self.sets, args.ridge),
        )
        self.steps: WeightingSteps
        """How a step is taken."""
        if lookahead:
            self.steps = Lookahead(self, parts)
        else:
            self.steps = AugmentedSteps(self, self.levels, self._terms)

    @property
    def x(self) -> Tensor:
        """Logits of the sets' weights, ``(N,)`` float64."""
        return self.weights.x

    @property
    def x_started(self) -> int:
        """Steps since x began to move; below 0 before."""
        held = math.ceil(self.args.x_warmup_ratio * self.state.max_steps)
        return self.state.global_step - held

    @property
    def set_weights(self) -> dict[str, float]:
        """The weight of each training set, softmax(x)."""
        return self.weights.by_name()

    # ------------------------------------------------------------------ a step

    @property
    def filled_parameters(self) -> Sequence[nn.Parameter] | None:
        return self.steps.filled

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Add a micro-batch; with the last one, set y's gradient."""
        if self._step_started is None:
            self._step_started = time.perf_counter()
            self.steps.begin()
        self.model.train()
        self.steps.add(self._prepare_inputs(inputs))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        chebyshev = self.steps.finish()
        if chebyshev is None:
            self._skip_step()
            return torch.zeros((), device=self.args.device)
        self.nonfinite_steps = 0
        self.note({"time/step": self._count(True)})
        return torch.tensor(chebyshev, device=self.args.device)

    def warn_of_known_rows(self, steps: int) -> None:
        """Say so if one set is gone through again while another is read for the first time."""
        if self.args.method != "lookahead" or self.args.x_learning_rate == 0:
            return
        args = self.args
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        sizes = {part.name: len(sequences) for part, sequences in self._set_parts.items()}
        name = min(sizes, key=lambda each: sizes[each])
        once = math.ceil(sizes[name] / rows)
        if once < steps and sizes[name] * _UNEQUAL <= max(sizes.values()):
            logger.warning(
                "Training set %r, of %d rows, has been gone through after step %d of %d, and comes "
                "again while larger sets have new rows: known rows do little for the criteria, and "
                "weights may go over to the larger sets. max_steps=%d ends before that.",
                name,
                sizes[name],
                once,
                steps,
                once,
            )

    def _step_cost(self) -> tuple[int, int]:
        return self.steps.cost

    def note(self, values: Mapping[str, float]) -> None:
        """Add to what is logged of the step."""
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
            eval_dataset: Rows per criterion, such as test rows; by default the validation rows
                that drive nothing (`args.held_out`).

        Returns:
            ``<prefix>_<criterion>_loss`` and ``<prefix>_chebyshev``.
        """
        result: dict[str, float] = {}
        highest = 0.0
        for part, sequences in self._criteria(eval_dataset).items():
            loss = self._mean_loss(sequences)
            result[f"{metric_key_prefix}_{part.name}_loss"] = loss
            highest = max(highest, self.preference[part.name] * loss)
        return self._note(result | {f"{metric_key_prefix}_chebyshev": highest})

    def _mean_loss(self, sequences: Sequence[TokenSequence]) -> float:
        every = distinct(sequences)
        logps, reference = self._score(every, "evaluating"), None
        if isinstance(sequences[0], PairSequence):
            if self._reference is None:
                raise InputError("Pairs can be evaluated where there are some in the training.")
            with self._reference.as_given():
                reference = self._score(every, "reference").double()
        lengths = torch.tensor([each.completion_length for each in every])
        scored = Scored(logps.double(), lengths, reference)
        place = {each: n for n, each in enumerate(every)}
        sides = [
            (s.chosen, s.rejected) if isinstance(s, PairSequence) else (s, s) for s in sequences
        ]
        chosen, rejected = (torch.tensor([place[pair[k]] for pair in sides]) for k in (0, 1))
        loss = part_loss(sequences, self.args.beta)
        return float(loss(scored[chosen], scored[rejected]).mean())

    @fast_products()
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
        if self._reference is not None:
            raise InputError("polish is for likelihoods: there are pairs among the rows.")
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
                done = polish_lower(self._problem(upper, lower), self.x, y, steps, tol)
            y = done.y
        finally:
            self.levels.load(y)
            self.model.train(training)
        if not done.converged and done.lower_gradient_norm_after >= done.lower_gradient_norm_before:
            logger.warning(
                "polish did not lower ‖∇_y g‖ (%.3g before, %.3g after %d gradients): the losses "
                "it reports are not those of a solved lower level. Give it more steps.",
                done.lower_gradient_norm_before,
                done.lower_gradient_norm_after,
                done.n_gradients,
            )
        return PolishReport(
            dict(zip(self.preference.live, done.objectives.tolist(), strict=True)),
            done.lower_gradient_norm_before,
            done.lower_gradient_norm_after,
            done.converged,
            done.n_gradients,
        )

    def _problem(self, upper: Batches, lower: Batches) -> BilevelProblem:
        """Both levels on these batches."""

        def on(batch: Batches, term: BatchTerm) -> Term:
            return lambda x, y: term(x, y, batch)

        criteria, sets = self._terms
        return BilevelProblem(
            [on(upper, term) for term in criteria],
            [on(lower, term) for term in sets],
            self.args.hvp,
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
        return {
            **super().state_dict(),
            **self.weights.state_dict(),
            **self.steps.state_dict(),
        }

    def identity(self) -> dict[str, Any]:
        held_out: Any = self.eval_dataset
        parts = {**self._set_parts, **self._driving}
        data = {f"{part.kind} {part.name}": sequences_digest(_flat(s)) for part, s in parts.items()}
        data |= {f"held out {p.name}": sequences_digest(_flat(s)) for p, s in held_out.items()}
        return {
            **super().identity(),
            "sets": list(self.sets),
            "model": self._model_digest,
            "data": data,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["sets"] != list(self.sets):
            raise InputError(
                f"The checkpoint is of the training sets {', '.join(state['sets'])}, not of "
                f"{', '.join(self.sets)}: give the same sets in the same order."
            )
        super().load_state_dict(state)
        self.weights.load_state_dict(state)
        self.steps.load_state_dict(state)


def _steps_to_one_of_x(args: DataWeightingConfig, criteria: int, sets: int) -> int:
    """⌈2 S / N⌉ if the arguments leave it open, which costs half a step more at most."""
    if args.method != "lookahead":
        return 1
    return args.x_every or max(1, math.ceil(2 * criteria / sets))


class _Moved(TrainerCallback):
    """Tells the steps that y's optimiser has moved."""

    def __init__(self, trainer: DataWeightingTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._trainer.warn_of_known_rows(state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.steps.moved()


def _tokenize(
    dataset: Mapping[str, Any], tokenizer: Any, args: DataWeightingConfig, kind: Any
) -> dict[Part, list[TokenSequence]]:
    """Sequences per part; what is left out for its length is told."""
    title = {"set": "training set", "criterion": "validation set"}[kind]
    return {
        Part(kind, name): tokenize_rows(rows, tokenizer, f"{title} {name!r}", args)
        for name, rows in dataset.items()
    }


def _flat(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """With the rejected responses of pairs behind the chosen ones."""
    rejected = [each.rejected for each in sequences if isinstance(each, PairSequence)]
    return [*sequences, *rejected]
