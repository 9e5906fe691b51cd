"""Keys of a recipe's `train` sections that have no use, and values that no training could use.

`transformers.TrainingArguments` checks few of its fields: a learning rate of -1 climbs, and a step
of NaN is found when all data has been scored.
"""

import math
from typing import Any

from paretune.names import shown

_UPLOAD = "nothing is uploaded: `paretune export` lays a run out as a folder for the hub"
_EVALUATION = "has no effect: evaluation is the recipe's own (`evaluation`)"
_COMMAND = "has no effect: the command says what is done"

REFUSED = {
    "label_smoothing_factor": "has no effect: the losses are those of `loss.name`",
    "neftune_noise_alpha": "noise in the policy's embeddings would make it another model than the "
    "reference; there is lora.dropout",
    "resume_from_checkpoint": "a run resumes by itself when the same command is given again",
    "auto_find_batch_size": "the batch size is part of the experiment: give "
    "per_device_train_batch_size and gradient_accumulation_steps",
    "ignore_data_skip": "a resumed training would see other data than one in one go",
    "remove_unused_columns": "must stay false: batches are made from all columns",
    "save_only_model": "training could not be resumed: checkpoints need the optimiser, and go when "
    "a point is done",
    "push_to_hub": _UPLOAD,
    **dict.fromkeys(
        ("hub_token", "hub_private_repo", "hub_model_id", "hub_always_push", "hub_revision"),
        _UPLOAD,
    ),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), _COMMAND),
    **dict.fromkeys(
        ("include_for_metrics", "batch_eval_metrics", "label_names", "prediction_loss_only"),
        _EVALUATION,
    ),
}
"""Keys that break a promise or have no effect, and what to do in place of each; false, null and 0
are let through."""

_POSITIVE = (
    *("learning_rate", "adam_epsilon", "num_train_epochs", "save_steps", "eval_steps"),
    *("logging_steps", "ddp_timeout", "x_learning_rate"),
)
_AT_LEAST_0 = (
    *("weight_decay", "max_grad_norm", "warmup_steps", "warmup_ratio", "eval_delay"),
    *("dataloader_num_workers", "early_stopping_patience"),
)
_AT_LEAST_1 = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("max_nonfinite_steps", "save_total_limit", "dataloader_prefetch_factor"),
    *("torch_empty_cache_steps", "eval_accumulation_steps", "max_length", "ddp_bucket_cap_mb"),
)
_SHARES = ("adam_beta1", "adam_beta2")


def key_fault(name: str, value: Any) -> str | None:
    """What is wrong with a key of a `train` section, of the right type; None if nothing is."""
    if name in REFUSED:
        return f"leave it out: {REFUSED[name]}" if value else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return f"it must be a finite number, not {value}"
    faulty, wanted = False, ""
    if name == "max_steps":
        faulty, wanted = value < 1 and value != -1, "at least 1, or -1 for num_train_epochs"
    elif name in _POSITIVE:
        faulty, wanted = value <= 0, "above 0"
    elif name in _AT_LEAST_0:
        faulty, wanted = value < 0, "at least 0"
    elif name in _AT_LEAST_1:
        faulty, wanted = value < 1, "at least 1"
    elif name in _SHARES:
        faulty, wanted = not 0 <= value < 1, "at least 0 and below 1"
    elif name == "data_seed":
        faulty, wanted = not 0 <= value < 2**32, "at least 0 and below 2^32"
    return f"it must be {wanted}, not {shown(value)}" if faulty else None
