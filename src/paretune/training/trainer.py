"""One trainer for every method that combines the gradients of several preference objectives."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast, broadcast_object_list
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback

from paretune.data.objectives import by_objective
from paretune.data.sampling import PairCollator, PairRows
from paretune.data.token_cache import cached_pairs
from paretune.data.tokenization import TokenizedPairs, TokenSequence
from paretune.errors import InputError
from paretune.evaluation.preference_metrics import PreferenceMetrics
from paretune.gradients import ObjectiveGradients
from paretune.gradients.objectives import loss_sums
from paretune.losses import Scored
from paretune.moo.weightings import Linear, Weighting, Weights
from paretune.training.base import BaseTrainer
from paretune.training.checks import check_evaluation, check_tokens, check_tokens_per_batch
from paretune.training.config import MultiObjectiveConfig
from paretune.training.reference import (
    Reference,
    close,
    turn_off_dropout,
    without_adapter_dropout,
)
from paretune.training.reference_cache import ReferenceCache, pairs_digest, trained_adapter
from paretune.training.trainable import check_launch, load_trainable

logger = logging.getLogger(__name__)

Pairs = Mapping[str, Iterable[Mapping[str, Any]]] | Iterable[Mapping[str, Any]]
"""Rows of each objective, or all of them with a column ``objective``: see
`paretune.data.objectives.by_objective`."""


class MultiObjectiveTrainer(BaseTrainer):
    """Trains a language model on several preference data sets at once, one gradient for each.

    At every optimiser step the M losses and gradients are accumulated over the micro-batches and
    processes, a weighting turns their Gramian into combination weights, and the combined gradient
    goes to the optimiser (clipping, schedules, mixed precision, checkpoints: as in
    ``transformers.Trainer``). The reference of DPO and IPO is the model as given: an adapter that
    was trained before belongs to it. Dropout of the base model is turned off, as in TRL's trainers.

    Args:
        model: A causal language model, its name or path, or a PEFT model whose adapter to train.
        args: See `MultiObjectiveConfig`.
        train_dataset: Per objective, rows with ``prompt``, ``chosen``, ``rejected`` (plain or
            conversational) and optionally ``weight``; or one table with a column ``objective``.
            Without ``prompt``, it is what ``chosen`` and ``rejected`` begin with.
        eval_dataset: The same for validation; the default of `evaluate`.
        processing_class: The tokenizer; loaded with the model if that is given by name.
        peft_config: Adds an adapter to train; without one all weights are trained.
        weighting: How the gradients are combined; default ``Linear()``: ``Σ p_m g^m``.
        callbacks: As in ``transformers.Trainer``.
        optimizers: As in ``transformers.Trainer``.
        on_scored: Told how much of a data set has its log-probabilities, from 0 to 1, as they are
            computed: of the reference for each data set, and in each evaluation.

    Raises:
        InputError: for data, preferences or settings that do not fit together.
    """

    args: MultiObjectiveConfig
    overall_measures: Sequence[str] = ("chebyshev",)
    """What `evaluate` returns of all objectives together."""

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: MultiObjectiveConfig,
        train_dataset: Pairs,
        eval_dataset: Pairs | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        weighting: Weighting | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        on_scored: Callable[[float], None] | None = None,
    ) -> None:
        check_launch(args)
        train_dataset = by_objective(train_dataset)
        self.preference = args.checked_preference(train_dataset)
        check_evaluation(
            args, self.preference.names, eval_dataset is not None, overall=self.overall_measures
        )
        self.objectives = self.preference.names
        self.live = self.preference.live
        self.weighting: Weighting = Linear() if weighting is None else weighting
        model, tokenizer = load_trainable(model, processing_class, peft_config, args)
        if places := turn_off_dropout(model):
            logger.info("The base model's dropout is off in training: %s.", ", ".join(places))
        self.losses = args.preference_losses(self.objectives)
        self._live_preference = torch.tensor([self.preference[n] for n in self.live]).double()
        self._tokenizer = tokenizer
        self._train_pairs = self._tokenize(train_dataset, args)
        eval_pairs = None if eval_dataset is None else self._tokenize(eval_dataset, args)
        for data in (self._train_pairs, eval_pairs):
            if data is not None:
                check_tokens(model, tokenizer, data.sequences)
        self._train_rows = rows = PairRows(self._train_pairs, self.live, args.sampling, args.seed)
        super().__init__(
            model,
            args,
            tokenizer,
            rows,
            PairCollator(self._train_pairs, tokenizer.pad_token_id),
            eval_pairs,
            callbacks,
            optimizers,
            on_scored,
        )
        # What is padded or refused for its length is told before anything is scored.
        self.packing.allows(max(len(s.input_ids) for s in self._train_pairs.sequences))
        check_tokens_per_batch(args.tokens_per_batch, rows, self._train_pairs)
        self.patience = args.early_stopping_patience
        if self.patience > 0:
            self.add_callback(EarlyStoppingCallback(self.patience))
        self.reference = Reference(self.model)
        if trained_adapter(self.model) and any(x.needs_reference for x in self.losses.values()):
            logger.warning(
                "The model's adapter was trained before: the reference is the model with this "
                "adapter as it is now, not the base without it."
            )
        self._attach_reference(self._train_pairs, "train")
        if eval_pairs is not None:
            self._attach_reference(eval_pairs, "validation")
        if self._train_pairs.reference is not None:
            self._check_reference()
        live_losses = {name: self.losses[name] for name in self.live}
        single = args.gradient_accumulation_steps == 1 and args.tokens_per_batch is None
        self.engine = ObjectiveGradients(
            self.model, live_losses, args.gradients, self.packing, single
        )
        self._step_tokens = self._step_passes = 0

    # ------------------------------------------------------------------ data

    def prepare(self, dataset: Pairs) -> TokenizedPairs:
        """Tokenise a data set and attach its reference log-probabilities, for `evaluate`.

        With full fine-tuning call it before `train`: afterwards the reference is gone.
        """
        pairs = self._tokenize(dataset, self.args)
        self._attach_reference(pairs, "evaluation")
        return pairs

    @property
    def train_pairs(self) -> TokenizedPairs:
        """The training data as `prepare` returns others."""
        return self._train_pairs

    def _tokenize(self, dataset: Pairs, args: MultiObjectiveConfig) -> TokenizedPairs:
        dataset = by_objective(dataset, "data set")
        missing = [name for name in self.objectives if name not in dataset]
        if missing:
            raise InputError(f"The data set has no pairs for objective {missing[0]!r}.")
        ordered = {name: dataset[name] for name in self.objectives}
        return cached_pairs(
            args.token_cache, ordered, self._tokenizer, args.max_length, args.overlong
        )

    @property
    def data_counts(self) -> dict[str, dict[str, Any]]:
        """Per objective, what became of its training pairs; JSON-able."""
        unmatched = self._train_rows.unmatched
        return {
            name: {**counts.to_json(), "unmatched": unmatched.get(name, 0)}
            for name, counts in self._train_pairs.counts.items()
        }

    @property
    def data_told(self) -> dict[str, Any]:
        """`data_counts` as ``pairs``, how batches were drawn and from how many rows; JSON-able."""
        rows = self._train_rows
        sampling = "joint" if rows.joint else "independent"
        return {"pairs": self.data_counts, "sampling": sampling, "rows": len(rows)}

    def _attach_reference(self, pairs: TokenizedPairs, title: str) -> None:
        if not any(loss.needs_reference for loss in self.losses.values()):
            return
        if self._trained and not self.reference.kept:
            raise InputError(
                "The reference model is gone after full fine-tuning: call trainer.prepare(dataset) "
                "before trainer.train(), and evaluate what it returns."
            )
        cache = self._reference_cache(pairs)
        total = len(pairs.sequences)

        def score(sequences: Sequence[TokenSequence], done: int) -> Tensor:
            return self._score(sequences, f"reference ({title})", done, total)

        pairs.reference = self.reference.score(
            pairs.sequences,
            cache,
            score,
            share=lambda value: broadcast_object_list([value])[0],
            store=self.accelerator.is_main_process,
        )

    def _reference_cache(self, pairs: TokenizedPairs) -> ReferenceCache:
        # The files hold parts of the data in the order of `by_prompt`.
        key = f"{self.reference.digest} {self.accelerator.mixed_precision} by prompt"
        return ReferenceCache(self.args.reference_cache, key, pairs.sequences)

    def _check_reference(self) -> None:
        """See on the first rows that the policy starts as its reference: DPO's loss is ln 2.

        Raises:
            InputError: it does not, and why.
        """
        data: Any = self.train_dataset
        rows = [data[i] for i in range(min(self.args.per_device_train_batch_size, len(data)))]
        stored, policy = self._first_logps(rows, training=True)
        mixed = self.accelerator.mixed_precision != "no"
        if close(policy, stored, self.model, mixed):
            return
        _, again = self._first_logps(rows, training=False)
        if close(again, stored, self.model, mixed):
            config = getattr(self.model, "config", None)
            settings = config.to_dict() if config is not None else {}
            named = [key for key in settings if "drop" in key or "jitter" in key or "noise" in key]
            raise InputError(
                f"{self._first_losses(rows, policy)}: the model computes something else in "
                "training than in evaluation. Set what is random in its configuration to 0"
                f"{f' ({chr(44).join(named)})' if named else ''}."
            )
        raise InputError(
            f"{self._first_losses(rows, policy)}: the model gives other log-probabilities for the "
            "same responses than the reference pass found. Delete the folder "
            f"reference_cache={self.args.reference_cache!r} if it is set; else the model's answers "
            "depend on what else is in a batch, and it cannot be trained this way."
        )

    def _first_logps(self, rows: list[Any], training: bool) -> tuple[Tensor, Tensor]:
        """Stored and computed log-probabilities of the responses in some rows."""
        collate: Any = self.data_collator
        batch = self._prepare_inputs(collate(rows))
        before = self.model.training
        self.model.train(training)
        try:
            with without_adapter_dropout(self.model), self.accelerator.autocast():
                policy = self.packing.logps(batch)
        finally:
            self.model.train(before)
        return batch["reference"].cpu(), policy.float().cpu()

    def _first_losses(self, rows: list[Any], policy: Tensor) -> str:
        collate: Any = self.data_collator
        batch = collate(rows)
        losses = {name: self.losses[name] for name in self.live}
        found, expected = (
            dict(zip(losses, (sums / totals).tolist(), strict=True))
            for sums, totals in (
                loss_sums(logps, batch, losses) for logps in (policy, batch["reference"])
            )
        )
        name = max(losses, key=lambda name: abs(found[name] - expected[name]))
        return (
            f"Before the first step the loss of {name!r} is {found[name]:.4f} instead of "
            f"{expected[name]:.4f}"
        )

    # ------------------------------------------------------------------ a step

    @property
    def filled_parameters(self) -> Sequence[nn.Parameter]:
        return self.engine.bank.parameters

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Add a micro-batch to the gradient bank; with the last one, set the combined gradient."""
        if self._step_started is None:
            self._step_started = time.perf_counter()
            self._step_tokens, self._step_passes = 0, self.engine.passes
            self.engine.bank.zero()
        self.model.train()
        self._step_tokens += int(inputs["attention_mask"].sum())
        inputs = self._prepare_inputs(inputs)
        for part in self.engine.parts(inputs, self.args.tokens_per_batch):
            self._accumulate(part)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        return self._combine().to(self.args.device)

    def _accumulate(self, batch: Mapping[str, Any]) -> None:
        """Add the gradients of (a part of) a micro-batch to the bank."""
        # Through self.model, not its DDP wrapper: the engine reduces the gradients itself.
        self.engine.accumulate(batch, self._loss_scale)

    @property
    def _loss_scale(self) -> float:
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None or not scaler.is_enabled() else float(scaler.get_scale())

    def _combine(self) -> Tensor:
        """Solve for the weights, write the direction, log; returns the Chebyshev value."""
        bank = self.engine.bank
        distributed = self.accelerator.distributed_type != DistributedType.NO
        bank.finish(self._reduce_sum if distributed else None)
        gramian, losses = bank.gramian(), bank.losses.clone()
        if distributed:  # reductions may differ in the last bit between ranks, weights must not
            device = self.accelerator.device  # NCCL takes no CPU tensors
            gramian, losses = broadcast([gramian.to(device), losses.to(device)])
            gramian, losses = gramian.cpu(), losses.cpu()
        if not (gramian.isfinite().all() and losses.isfinite().all()):
            # With finite losses it may be but an overflow of the scaled signal.
            scaled = self._loss_scale != 1.0
            self._skip_step(counts=not scaled or not bool(losses.isfinite().all()))
            if scaled:  # the scaler must see it, to lower its scale
                bank.combine(self._live_preference, float("nan"))
            return losses.new_zeros((), dtype=torch.float32)
        self.nonfinite_steps = 0
        solving = time.perf_counter()
        weights = self.weigh(gramian, losses, self._live_preference)
        solved = time.perf_counter() - solving
        bank.combine(weights.weights, self._loss_scale)
        assert self._step_started is not None
        share = solved / (time.perf_counter() - self._step_started)
        elapsed = self._count(True, vertices=weights.vertex, solver_share=share)
        self._record(weights, gramian, losses, elapsed, share)
        return (self._live_preference * losses).max().float()

    def _step_cost(self) -> tuple[int, int]:
        return self._step_tokens, self.engine.passes - self._step_passes

    def weigh(self, gramian: Tensor, losses: Tensor, preference: Tensor) -> Weights:
        """Combination weights of a step.

        Args:
            gramian: ``(M, M)`` float64, of the objectives with a positive preference weight.
            losses: ``(M,)`` float64.
            preference: ``(M,)`` float64.
        """
        return self.weighting(gramian, losses, preference)

    # ------------------------------------------------------------------ logs

    def _record(
        self, weights: Weights, gramian: Tensor, losses: Tensor, elapsed: float, share: float
    ) -> None:
        values: dict[str, float] = {}
        norms = gramian.diagonal().clamp(min=0).sqrt()
        for m, name in enumerate(self.live):
            values[f"{name}/loss"] = float(losses[m])
            values[f"lambda/{name}"] = float(weights.lam[m])
            values[f"weight/{name}"] = float(weights.weights[m])
            values[f"gradient_norm/{name}"] = float(norms[m])
            for k in range(m):
                product = norms[m] * norms[k]
                cosine = float(gramian[m, k] / product) if product > 0 else 0.0
                values[f"cosine/{self.live[k]}|{name}"] = cosine
        values |= {
            "clamp/mgda_term": weights.mgda_term,
            "clamp/chebyshev_term": weights.chebyshev_term,
            "clamp/gap": weights.gap,
            "clamp/min_norm": weights.min_norm,
            "clamp/vertex": float(weights.vertex),
            "time/solver_share": share,
            "time/step": elapsed,
            # Of all processes, which have batches of like size.
            "spend/policy_tokens": self._step_cost()[0] * self.accelerator.num_processes,
            "spend/passes": self._step_cost()[1] * self.accelerator.num_processes,
        }
        for key, value in values.items():
            self._step_logs[key].append(float(value))

    # ------------------------------------------------------------------ measures

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Pairs | TokenizedPairs | None = None,
        ignore_keys: Sequence[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss, accuracy and margin of every objective, and ``max_m p_m f^m``.

        Returns:
            ``<prefix>_<objective>_loss``, ``_accuracy``, ``_margin``, ``_perplexity`` (of
            its chosen responses' tokens) and ``<prefix>_chebyshev``.
        """
        given: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if given is None:
            raise InputError("There is nothing to evaluate on: give the trainer an eval_dataset.")
        pairs = given if isinstance(given, TokenizedPairs) else self.prepare(given)
        return self._note(self.measure(pairs, metric_key_prefix))

    def measure(
        self,
        pairs: TokenizedPairs,
        metric_key_prefix: str = "eval",
        logps: Tensor | None = None,
    ) -> dict[str, float]:
        """What `evaluate` returns, of prepared pairs, without logging it.

        Args:
            logps: The policy's log-probabilities of the sequences, where they are known.
        """
        if logps is None:
            logps = self._score(pairs.sequences, "evaluating")
        lengths = torch.tensor([sequence.completion_length for sequence in pairs.sequences])
        responses = Scored(logps, lengths, pairs.reference)
        metrics = PreferenceMetrics(self.objectives)
        perplexities = {}
        for name, loss in self.losses.items():
            index = pairs.pairs[name]
            chosen, rejected = (
                responses[torch.tensor(side)] for side in (index.chosen, index.rejected)
            )
            offset = None if index.offset is None else torch.tensor(index.offset)
            values, margins = loss(chosen, rejected, offset), loss.margins(chosen, rejected)
            metrics.update(name, values, margins, torch.tensor(index.weight))
            nats = -float(chosen.logps.double().sum() / chosen.lengths.sum())
            perplexities[f"{metric_key_prefix}_{name}_perplexity"] = math.exp(min(nats, 700.0))
        return metrics.result(self.preference, metric_key_prefix) | perplexities

    # ------------------------------------------------------------------ state

    def identity(self) -> dict[str, Any]:
        pairs = self._train_pairs
        validation: Any = self.eval_dataset
        chooses = self.args.load_best_model_at_end and validation is not None
        return {
            **super().identity(),
            "losses": {name: repr(loss) for name, loss in self.losses.items()},
            "model": self.reference.digest,
            "training data": pairs_digest(pairs.sequences, pairs.pairs),
            "validation data": pairs_digest(validation.sequences, validation.pairs)
            if chooses
            else None,
        }
