"""Training one point and keeping what came of it."""

import gc
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from paretune.errors import UntrainedError
from paretune.experiment.tracking import logged
from paretune.files import (
    main_process,
    move,
    partial_name,
    read_json,
    sync,
    sync_files,
    write_json,
    write_jsonl,
)
from paretune.models import is_sharded
from paretune.progress import STEPS, Report
from paretune.results.weights import CHECKSUMS, TRAINING, checksums
from paretune.spend import Watch
from paretune.training import MultiObjectiveTrainer
from paretune.training.totals import Totals


def train_point(
    trainer: MultiObjectiveTrainer,
    folder: Path,
    report: Report,
    shared: Sequence[str] = (),
    measured: Callable[[], Mapping[str, Any]] = dict,
) -> None:
    """Train, or resume it, and keep weights, log and ``training.json``.

    Args:
        shared: What else the point needed, for ``training.json`` (see `baselines.context`).
        measured: What else of the trained model is to be kept there; called when it is trained.

    Raises:
        UntrainedError: no weight changed.
        TrainingStoppedError: see `MultiObjectiveTrainer.train`.
    """
    report("train", 0.0)
    watch = Watch()
    with logged(trainer, folder, _run_of(folder)):
        trainer.train(resume_from_checkpoint=True)
    if not trainer.totals.moved:
        raise UntrainedError(
            f"No weight changed in {trainer.totals.steps} steps: at each, the combined gradient, "
            "or the learning rate in its warm-up, was zero. Objectives that oppose each other "
            "exactly have no gradient at this preference: leave it out, or see that the pairs do "
            "not contradict each other."
        )
    more = {"shared": sorted(shared), **measured()}
    _save(trainer, folder, more, watch.spend().peak_memory_bytes)


def _run_of(folder: Path) -> Path:
    """The run folder that a point's folder is in."""
    above = (each for each in folder.parents if (each / "manifest.json").exists())
    return next(above, folder.parent)


def wait_for_all() -> None:
    """Wait here until all processes have come here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def told(value: Any) -> Any:
    """What the first of the processes that were started together has as its `value`."""
    values = [value]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(values)
    return values[0]


def free_memory() -> None:
    """Give back what the last model and trainer held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class StepReport(TrainerCallback):
    """Reports the share of the training steps that is done, and logs a line every tenth."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._begun = (0.0, 0)
        self._tenth = 0

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._begun = (time.monotonic(), state.global_step)
        self._tenth = 10 * state.global_step // max(state.max_steps, 1)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        tenth = 10 * state.global_step // max(state.max_steps, 1)
        if logs is None or "learning_rate" not in logs or tenth <= self._tenth:
            return
        self._tenth = tenth
        since, first = self._begun
        pace = (time.monotonic() - since) / max(state.global_step - first, 1)
        losses = (f"{k.removesuffix('/loss')} {logs[k]:.4g}" for k in logs if k.endswith("/loss"))
        shares = (f"{k.removeprefix('lambda/')} {logs[k]:.3g}" for k in logs if k[:7] == "lambda/")
        told = {"loss": ", ".join(losses), "λ": ", ".join(shares)}
        STEPS.info(
            "step %d of %d%s, %.0f s left",
            state.global_step,
            state.max_steps,
            "".join(f", {what} {text}" for what, text in told.items() if text),
            pace * (state.max_steps - state.global_step),
        )

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._report("train", state.global_step / max(state.max_steps, 1))


def _save(
    trainer: MultiObjectiveTrainer, folder: Path, more: Mapping[str, Any], peak_memory: int
) -> None:
    """Keep the trained weights and the log; ``training.json``, written last, says it is all there.

    Several processes hold the same weights: one writes.
    """
    if main_process() or is_sharded(trainer.model):
        save_weights(trainer.model, trainer.processing_class, folder)
    if main_process():
        history = trainer.state.log_history
        write_jsonl(folder / "log.jsonl", history)
        summary = _summary(trainer.totals, trainer.state.global_step, peak_memory)
        best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
        chosen = {"best_step": best} if best else {}
        finish_training(folder, {**summary, **chosen, **trainer.data_told, **more})
    wait_for_all()


def finish_training(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``training.json``, which says that all else is there, and drop the checkpoints."""
    sync_files(folder)
    write_json(folder / TRAINING, {**record, CHECKSUMS: checksums(folder)})
    drop_checkpoints(folder)


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a training that is over."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def save_weights(model: Any, tokenizer: Any, folder: Path) -> None:
    """Keep the adapter or, of a model without one, all weights and the tokenizer.

    Of a sharded model all processes come here together.
    """
    partial = partial_name(folder / "weights")
    model.save_pretrained(partial, is_main_process=main_process())
    if not main_process():
        return
    if not hasattr(model, "peft_config"):
        tokenizer.save_pretrained(partial)
    (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty form
    config = partial / "adapter_config.json"
    if config.exists():  # PEFT writes sets in an order that differs from process to process
        write_json(config, _ordered(read_json(config)))
    for file in sorted(partial.iterdir()):
        sync(file)
        move(file, folder / file.name)
    partial.rmdir()


def _ordered(config: Mapping[str, Any]) -> dict[str, Any]:
    modules = config["target_modules"]
    return {**config, "target_modules": sorted(modules) if isinstance(modules, list) else modules}


def _summary(totals: Totals, steps: int, peak_memory: int) -> dict[str, Any]:
    """What the training took, over all its sessions."""
    spend = replace(totals.spend, seconds=totals.seconds, peak_memory_bytes=peak_memory)
    return {
        "steps": steps,
        "seconds": spend.seconds,
        "spend": spend.to_json(),
        **totals.summary(),
    }
