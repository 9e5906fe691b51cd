"""What the trainers share: loading, scoring, logs of steps, checkpoints and going on from them."""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState, set_seed
from transformers.trainer_utils import TrainOutput

from paretune.data.tokenization import TokenSequence
from paretune.errors import InputError, TrainingStoppedError, UntrainedError
from paretune.logprobs import Packing, score_sequences
from paretune.models import is_sharded
from paretune.models.products import fast_products
from paretune.moo.preference import Preference
from paretune.spend import Spend
from paretune.training.arguments import lasting
from paretune.training.callbacks import EpochRows, Epochs, Movement, SharedEpoch, Times
from paretune.training.checkpoints import (
    CompleteCheckpoints,
    difference,
    finished_state,
    newest_complete,
    read_state,
    resumable,
)
from paretune.training.config import CommonConfig
from paretune.training.totals import Totals
from paretune.training.trl_names import ARGUMENTS, check_names

logger = logging.getLogger(__name__)


class BaseTrainer(Trainer):
    """A ``transformers.Trainer`` whose steps are its own: it sets the gradients by itself.

    Args:
        model, tokenizer: As from `load_trainable`.
        args: See `CommonConfig`.
        rows: Training rows, and `collate`, which makes a batch of some.
        eval_data: Kept as ``self.eval_dataset``.
        callbacks, optimizers: As in ``transformers.Trainer``.
        on_scored: Told how much of a data set has its log-probabilities, from 0 to 1.

    Raises:
        InputError: when started in a way that does not leave the gradients to the trainer.
    """

    loss_is_scaled_for_ga = False
    args: CommonConfig
    model: PreTrainedModel
    preference: Preference
    patience = 0
    """Evaluations without a better one after which training stops; 0: it does not."""

    def __new__(cls, *args: Any, **given: Any) -> "BaseTrainer":
        check_names(cls, given, ARGUMENTS)
        return super().__new__(cls)

    def __init__(
        self,
        model: nn.Module,
        args: CommonConfig,
        tokenizer: Any,
        rows: EpochRows,
        collate: Callable[[Sequence[Any]], dict[str, Any]],
        eval_data: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        on_scored: Callable[[float], None] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        shared = SharedEpoch(rows)
        save_only_model = args.save_only_model
        # transformers keeps no optimiser of sharded weights; here it is one of adapters, whole.
        args.save_only_model = save_only_model or is_sharded(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=shared,
            eval_dataset=eval_data,
            data_collator=collate,
            processing_class=tokenizer,
            callbacks=[
                *(callbacks or ()),
                Epochs(shared),
                Movement(self),
                Times(self),
                CompleteCheckpoints(self),
            ],
            optimizers=optimizers,
        )
        args.save_only_model = save_only_model
        # `accelerate launch` sets these where the arguments say nothing of them.
        if owner := (
            (self.is_fsdp_enabled and "FSDP") or (self.is_deepspeed_enabled and "DeepSpeed")
        ):
            raise InputError(
                f"The launch configuration of accelerate turns {owner} on, which owns the "
                "gradients: they cannot then be kept for each objective. Use distributed data "
                "parallel (`accelerate launch --multi_gpu`)."
            )
        self.packing = Packing(self.model, args.packing)
        """Which batches run packed."""
        self.nonfinite_steps = 0
        """How many steps in a row had NaN or infinity in a loss or gradient."""
        self.totals = Totals()
        """What the training took so far, over all its sessions."""
        self._trained = False
        self._identity: dict[str, Any] = {}
        self._on_scored = on_scored
        self._step_logs: dict[str, list[float]] = defaultdict(list)
        self._step_started: float | None = None

    # ------------------------------------------------------------------ a step

    @property
    def filled_parameters(self) -> Sequence[nn.Parameter] | None:
        """Those that a step writes gradients to; None: all that are trained, by autograd."""
        return None

    @property
    def progress(self) -> float:
        """How much of the training is done, in [0, 1]."""
        return self.state.global_step / max(self.state.max_steps, 1)

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        # transformers' hook would average gradients that are reduced here.
        for parameter in model.parameters():
            if parameter.requires_grad and torch.distributed.is_initialized():
                torch.distributed.broadcast(parameter.data, src=0)

    def _reduce_sum(self, value: Tensor) -> Tensor:
        reduced: Tensor = self.accelerator.reduce(value, "sum")
        return reduced

    def _skip_step(self, counts: bool = True) -> None:
        """Leave parameters and all state as they are: no gradient, no update.

        Args:
            counts: Whether it is one of those after which, in a row, training stops.
        """
        self._count(taken=False)
        self.model.zero_grad(set_to_none=True)
        self.nonfinite_steps += counts
        self._step_logs["nonfinite"].append(1.0)
        if self.nonfinite_steps >= self.args.max_nonfinite_steps:
            self.control.should_training_stop = True
            self.control.should_save = True

    def _step_cost(self) -> tuple[int, int]:
        """Tokens and passes of the step so far in this process; all have batches of like size."""
        return 0, 0

    def _count(self, taken: bool, **sums: float) -> float:
        """Add a step to the totals, taken or skipped; returns the seconds it took.

        Args:
            sums: What to add to other fields of `Totals`.
        """
        assert self._step_started is not None
        seconds = time.perf_counter() - self._step_started
        self._step_started = None
        totals, n = self.totals, self.accelerator.num_processes
        tokens, passes = self._step_cost()
        totals.steps += taken
        totals.skipped += not taken
        for name, value in sums.items():
            setattr(totals, name, getattr(totals, name) + value)
        totals.spend += Spend(policy_tokens=tokens * n, passes=passes * n, seconds=seconds)
        return seconds

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the steps since the last training log."""
        if "learning_rate" in logs:
            nonfinite = self._step_logs.pop("nonfinite", [])
            logs |= {key: sum(seen) / len(seen) for key, seen in self._step_logs.items()}
            if nonfinite:
                logs["nonfinite_steps"] = float(len(nonfinite))
            self._step_logs.clear()
        super().log(logs, start_time)

    def _score(
        self,
        sequences: Sequence[TokenSequence],
        title: str,
        before: int = 0,
        total: int | None = None,
    ) -> Tensor:
        """Log-probabilities of the responses, as `score_sequences`, by all processes together.

        Args:
            before, total: How many of how many sequences were scored already, for the progress.
        """
        with (
            tqdm(desc=title, disable=self.args.disable_tqdm, leave=False) as bar,
            self.accelerator.autocast(),
        ):

            def progress(done: int, batches: int) -> None:
                bar.total = batches
                bar.update()
                if self._on_scored is not None:
                    scored = before + done / batches * len(sequences)
                    self._on_scored(scored / (total or len(sequences)))

            logps = score_sequences(
                self.model,
                sequences,
                self._tokenizer.pad_token_id,
                self.args.per_device_eval_batch_size,
                self.accelerator.process_index,
                self.accelerator.num_processes,
                progress,
                self.packing,
            )
        return self._reduce_sum(logps.to(self.accelerator.device)).cpu()

    def _note(self, metrics: dict[str, float]) -> dict[str, float]:
        """Log an evaluation and tell the callbacks of it."""
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics=metrics
        )
        return metrics

    # ------------------------------------------------------------------ runs

    @fast_products()
    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train; ``resume_from_checkpoint=True`` resumes from the newest whole checkpoint.

        A checkpoint cut short by a killed process is never resumed from, and a damaged one gives
        way to the one before.

        Raises:
            InputError: the checkpoint is of another preference, other data or other arguments.
            TrainingStoppedError: when losses or gradients stayed non-finite for
                ``max_nonfinite_steps`` steps in a row (a checkpoint is kept), no step was taken,
                or none changed a weight.
        """
        self._identity = self.identity()
        checkpoint = self._checkpoint(resume_from_checkpoint)
        if checkpoint is not None:
            state = read_state(checkpoint)
            known = state.get("identity")  # None in a checkpoint of 0.1
            if known is not None and (other := difference(known, self._identity)):
                raise InputError(
                    f"The checkpoint '{checkpoint}' is of another training: {other}. Give the same "
                    "again, or train into another folder."
                )
            self.load_state_dict(state)
            if over := finished_state(checkpoint, self.args, self.patience):
                return self._take_over(over, Path(checkpoint))
        self._trained = True
        self._step_started = None  # an interrupted step leaves nothing behind
        # transformers seeds when a trainer is made; what happened since must not matter. A resumed
        # run gets its checkpoint's random state.
        set_seed(self.args.seed)
        result = super().train(checkpoint, trial, ignore_keys_for_eval)
        self._check_trained()
        return result

    def _checkpoint(self, asked: str | bool | None) -> str | None:
        """The checkpoint to resume from, if there is one that can be."""
        if not asked:
            return None
        if asked is True:
            found = newest_complete(str(self.args.output_dir))
        else:
            found = str(asked)
            read_state(found)  # an error where it is incomplete or damaged
        if found is None or resumable(found):
            return found
        if finished_state(found, self.args, self.patience) is not None:
            return found
        reason = f"The checkpoint '{found}' was written with save_only_model=True, without the "
        if asked is not True:
            raise InputError(
                f"{reason}state of the optimiser: it cannot be resumed from. Load its weights into "
                "the model, or train with save_only_model=False."
            )
        logger.warning("%sstate of the optimiser: training starts anew.", reason)
        return None

    def _check_trained(self) -> None:
        """Raise TrainingStoppedError if this was no training."""
        totals = self.totals
        if self.nonfinite_steps >= self.args.max_nonfinite_steps:
            raise TrainingStoppedError(
                f"Training stopped at step {self.state.global_step}: a loss or gradient was NaN or "
                f"infinite for {self.nonfinite_steps} steps in a row. Lower the learning rate or "
                f"clip gradients; the last checkpoint is in {self.args.output_dir}."
            )
        if totals.steps == 0:
            raise UntrainedError(
                f"No step was taken: a loss or gradient was NaN or infinite in all "
                f"{totals.skipped} steps. Check the data's weights and scores, the reference and "
                "the model's dtype."
            )
        if totals.unmoved and not totals.moved:
            raise self.unmoved_error()
        if not totals.moved and self.args.learning_rate > 0:
            # Objectives may oppose each other exactly: then this is where training ends.
            logger.warning(
                "No weight changed: the combined gradient, or the learning rate, was zero at every "
                "step."
            )
        if totals.skipped:
            logger.warning(
                "%d of %d steps were skipped: a loss or gradient was NaN or infinite.",
                totals.skipped,
                totals.steps + totals.skipped,
            )

    def unmoved_error(self) -> UntrainedError:
        """What to raise when no step changed a weight."""
        unmoved = self.totals.unmoved
        steps = "1 step" if unmoved == 1 else f"{unmoved} steps"
        return UntrainedError(
            f"No weight changed in {steps} although the gradient was not zero: the learning rate "
            f"{self.args.learning_rate:g} is too small for the weights' dtype, or the optimiser "
            "does not step on the model's own tensors."
        )

    def _take_over(self, state: TrainerState, checkpoint: Path) -> TrainOutput:
        """End as the run did that wrote this checkpoint after its last step."""
        # transformers would take one more step.
        self.state, self._trained = state, True
        if self.args.load_best_model_at_end and state.best_global_step:
            checkpoint = checkpoint.with_name(f"checkpoint-{state.best_global_step}")
            read_state(checkpoint)  # an error where it is damaged
        self._load_from_checkpoint(str(checkpoint))
        return TrainOutput(state.global_step, 0.0, {})

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            read_state(self.state.best_model_checkpoint)  # an error where it is damaged
        super()._load_best_model()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # No older checkpoint goes before this one is complete (see `CompleteCheckpoints`).
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """What a step leaves behind besides model, optimiser and random state.

        Values can be written as JSON, or are tensors.
        """
        return {
            "nonfinite_steps": self.nonfinite_steps,
            "totals": self.totals.to_json(),
            "identity": self._identity,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; called when a run is resumed."""
        self.nonfinite_steps = int(state["nonfinite_steps"])
        self.totals = Totals.from_json(state["totals"])

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that is resumed from it, as JSON has it."""
        configs = getattr(self.model, "peft_config", {})
        return {
            "trainer": type(self).__name__,
            "preference": dict(self.preference),
            "processes": self.accelerator.num_processes,
            "adapter": {name: adapter_settings(config) for name, config in configs.items()},
            "arguments": json.loads(json.dumps(lasting(self.args), default=str)),
        }


def adapter_settings(config: Any) -> dict[str, Any]:
    """What decides on an adapter's shape and scale."""
    kept = {}
    for name, value in config.to_dict().items():
        if name not in ("base_model_name_or_path", "revision", "inference_mode", "peft_version"):
            kept[name] = sorted(value) if isinstance(value, set | frozenset) else value
    found: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return found
