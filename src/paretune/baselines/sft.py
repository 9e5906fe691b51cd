"""Supervised fine-tuning on answers, by TRL's SFTTrainer; it resumes where it was cut short."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]  # all are lazy

from paretune.data.tokenization import TokenSequence
from paretune.experiment.resume import Clock, train_to_end
from paretune.experiment.setup import float32_adapter
from paretune.experiment.train_point import StepReport
from paretune.progress import Report
from paretune.spend import Spend, Watch

_IGNORED = -100  # the label of tokens without a loss


def fine_tune(
    model: Any,
    tokenizer: Any,
    sequences: Sequence[TokenSequence],
    checkpoints: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    schedule: Literal["linear", "constant"],
    save_steps: int,
    seed: int,
    report: Report,
    arguments: Mapping[str, Any],
) -> Spend:
    """Minimise the mean negative log-likelihood of the answers' tokens.

    Args:
        model: Its trainable weights are changed in place.
        sequences: Prompts and answers.
        checkpoints: Folder of the checkpoints; training resumes from the newest.
        save_steps: Steps between them.
        arguments: Further ones of the trainer, such as `trl_arguments`.

    Returns:
        What it took, over all sessions.
    """
    rows = [
        {
            "input_ids": list(each.input_ids),
            "labels": [_IGNORED] * each.prompt_length + list(each.input_ids[each.prompt_length :]),
        }
        for each in sequences
    ]
    args = SFTConfig(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type=schedule,
        weight_decay=0.01,  # as in Rewards-in-Context
        save_strategy="steps",
        save_steps=save_steps,
        seed=seed,
        max_length=None,
        report_to="none",
        **arguments,
    )
    data = Dataset.from_list(rows)
    clock, watch = Clock(), Watch()
    with float32_adapter(model):
        trainer = SFTTrainer(
            model,
            args,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[StepReport(report)],
        )
    trainer.remove_callback(PrinterCallback)  # prints every log entry
    report("train", 0.0)
    train_to_end(trainer, clock, data)
    mean_length = sum(len(each.input_ids) for each in sequences) / len(sequences)
    seen = min(batch_size, len(sequences)) * steps
    return Spend(
        policy_tokens=round(seen * mean_length),
        passes=2 * steps,
        seconds=clock.seconds(),
        peak_memory_bytes=watch.spend().peak_memory_bytes,
    )
