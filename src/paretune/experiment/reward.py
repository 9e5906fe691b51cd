"""Reward models trained on a recipe's own pairs, one an objective (TRL's RewardTrainer).

`rewards/<objective>/` holds the adapter with its score head, ``log.jsonl`` and, written last,
``reward.json``. A finished reward model is never trained again, and training that was cut short
resumes from its newest complete checkpoint.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback
from trl import RewardConfig, RewardTrainer  # type: ignore[attr-defined]  # all are lazy

from paretune.data import PreferenceData
from paretune.errors import InputError
from paretune.evaluation.reward_models import RewardInput, RewardModelScorer
from paretune.evaluation.scorers import normalise, pair_accuracy, text_of
from paretune.experiment.resume import Clock, train_to_end
from paretune.experiment.setup import (
    checked_arguments,
    float32_adapter,
    lora_config,
    trl_arguments,
)
from paretune.experiment.train_point import (
    StepReport,
    drop_checkpoints,
    free_memory,
    save_weights,
    wait_for_all,
)
from paretune.files import main_process, read_object, write_json, write_jsonl
from paretune.models import load_model_and_tokenizer
from paretune.progress import Report
from paretune.results.weights import CHECKSUMS, checksums
from paretune.training.checks import check_weights

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe

logger = logging.getLogger(__name__)

_TURNS = {"user": "\n\nHuman: {content}", "assistant": "\n\nAssistant: {content}"}

# Fields of RewardConfig that a recipe gives elsewhere, or that this module sets.
_ELSEWHERE = {
    "output_dir": "output_dir",
    "seed": "reward.seed",
    "max_length": "reward.max_length",
    "model_init_kwargs": "model",
    "trust_remote_code": "model.trust_remote_code",
}


def reward_arguments(recipe: "Recipe", folder: Path) -> RewardConfig:
    """The trainer's arguments, checkpoints going to `folder`.

    Raises:
        InputError: a key of the recipe's reward.train section that does not exist, belongs
            elsewhere, or has a value of the wrong type.
    """
    train = checked_arguments(
        recipe.reward.train, RewardConfig, "reward.train", _ELSEWHERE, recipe.source
    )
    own = {"seed": recipe.reward.seed, "max_length": None, "output_dir": str(folder)}
    try:
        return RewardConfig(**trl_arguments(recipe) | train | own)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"{recipe.source}: the reward.train section does not work here: {error}"
        ) from error


def train_reward(
    recipe: "Recipe",
    objective: str,
    splits: Mapping[Any, PreferenceData],
    folder: Path,
    report: Report = lambda phase, done: None,
) -> dict[str, Any]:
    """Train the reward model of one objective, unless it is there, and measure it.

    Minus the mean of log σ(r(chosen) − r(rejected)) is minimised (Bradley-Terry), at the score of
    each answer's last token. Weights of pairs count in the accuracy, not in training.

    Args:
        splits: Train, validation and test data, split by prompt.
        folder: The objective's own.

    Returns:
        What ``reward.json`` holds: how to load and feed the model (``model``, ``input``,
        ``max_length``), ``pairs`` trained on and ``dropped`` for their length, ``steps``,
        ``seconds`` and ``tokens`` of training, ``accuracy`` on validation and test, and
        ``normalisation``: mean and std of its scores of the training answers.

    Raises:
        InputError: a model, data or settings that do not fit together.
    """
    done = folder / "reward.json"
    if done.exists():
        drop_checkpoints(folder)  # a kill may have left them
        return read_object(done)
    report("prepare", 0.0)
    args = reward_arguments(recipe, folder / "checkpoints")
    source = _base(recipe)
    set_seed(recipe.reward.seed)  # the score head is drawn on loading
    model, tokenizer = load_model_and_tokenizer(**source, head="new_score")
    check_weights(model)
    train = splits["train"].pairs[objective]
    if "weight" in train.column_names:
        logger.warning("%s: the pairs' weights count in the accuracy, not in training", objective)
    form = _form(train[0], tokenizer)
    limit = recipe.reward.max_length
    rows, dropped = _tokenize(train, objective, form, tokenizer, limit)
    held_out = None
    if str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no":
        validation = splits["validation"].pairs[objective]
        held_out, _ = _tokenize(validation, objective, form, tokenizer, limit)
    clock = Clock()
    trainer = _trainer(recipe, model, tokenizer, args, rows, held_out, report)
    report("train", 0.0)
    train_to_end(trainer, clock, rows)
    seconds = clock.seconds()
    report("evaluate", 0.0)
    scorer = RewardModelScorer(
        trainer.model,
        tokenizer,
        name=objective,
        input=form,
        max_length=limit,
        batch_size=args.per_device_eval_batch_size,
    )
    tokens = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    record: dict[str, Any] = {
        "objective": objective,
        "model": source,
        "input": {"kind": form.kind, "template": form.template, "turns": form.turns},
        "max_length": limit,
        "pairs": len(rows),
        "dropped": dropped,
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "tokens": round(tokens * (trainer.state.epoch or 0.0)),
        "accuracy": {
            name: pair_accuracy(scorer, splits[name].pairs[objective])
            for name in ("validation", "test")
        },
        "normalisation": normalise(scorer, splits["train"]).constants(),
    }
    if main_process():
        save_weights(trainer.model, tokenizer, folder)
        write_jsonl(folder / "log.jsonl", trainer.state.log_history)
        write_json(done, {**record, CHECKSUMS: checksums(folder)})
        drop_checkpoints(folder)
    wait_for_all()
    report("evaluate", 1.0)
    del trainer, model, scorer
    free_memory()
    return read_object(done)


def _trainer(
    recipe: "Recipe",
    model: Any,
    tokenizer: Any,
    args: RewardConfig,
    rows: Dataset,
    held_out: Dataset | None,
    report: Report,
) -> RewardTrainer:
    """TRL's trainer, which adds the adapter."""
    with float32_adapter(model):
        trainer = RewardTrainer(
            model,
            args,
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=lora_config(recipe, "SEQ_CLS"),
            callbacks=[StepReport(report)],
        )
    trainer.remove_callback(PrinterCallback)  # prints every log entry
    return trainer


def _base(recipe: "Recipe") -> dict[str, Any]:
    """How the base is loaded: arguments of `load_model_and_tokenizer`."""
    model = recipe.model.model_dump()
    if recipe.reward.model is None:
        return model
    return {**model, "name": recipe.reward.model, "template_variables": {}, "revision": None}


def _form(row: Mapping[str, Any], tokenizer: Any) -> RewardInput:
    """Conversations go through the chat template; of plain text, the end is marked.

    A model without a template, such as GPT-2, reads a conversation as a plain dialogue.
    """
    if isinstance(row["prompt"], str):
        return RewardInput("text", "{prompt}{response}{eos}")
    if tokenizer.chat_template is None:
        return RewardInput("text", "{prompt}\n\nAssistant: {response}{eos}", dict(_TURNS))
    return RewardInput("chat")


def _tokenize(
    pairs: Sequence[Mapping[str, Any]],
    objective: str,
    form: RewardInput,
    tokenizer: Any,
    max_length: int,
) -> tuple[Dataset, int]:
    """The pairs as RewardTrainer takes them, and how many were too long."""
    rows = [
        {
            f"{side}_ids": form.encode(tokenizer, row["prompt"], text_of(row[side]))["input_ids"]
            for side in ("chosen", "rejected")
        }
        for row in pairs
    ]
    kept = [row for row in rows if max(map(len, row.values())) <= max_length]
    if not kept:
        raise InputError(
            f"All {len(rows)} pairs of objective {objective!r} are longer than reward.max_length="
            f"{max_length} tokens: raise it."
        )
    return Dataset.from_list(kept), len(rows) - len(kept)
