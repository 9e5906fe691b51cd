"""Keys of a recipe's `train` sections that no training of a recipe has a use for."""

import math
from typing import Any

from paretune.training.arguments import REFUSED, range_fault

_COMMAND = "the command says what is done"
_OF_ANY_TRAINING = (
    *("label_smoothing_factor", "neftune_noise_alpha", "auto_find_batch_size", "ignore_data_skip"),
    *("remove_unused_columns", "resume_from_checkpoint", "prediction_loss_only", "label_names"),
    *("include_for_metrics", "batch_eval_metrics", "push_to_hub", "hub_token", "hub_model_id"),
    *("hub_private_repo", "hub_always_push", "hub_revision"),
)
_REASONS = {name: REFUSED[name] for name in _OF_ANY_TRAINING} | {
    "save_only_model": "training could not be resumed: checkpoints need the optimiser, and go when "
    "a point is done",
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), _COMMAND),
}


def key_fault(name: str, value: Any) -> str | None:
    """What is wrong with a key of a `train` section, of the right type; None if nothing is.

    Of keys that have no effect or break a promise, false, null and 0 are let through.
    """
    if name in _REASONS:
        return f"leave it out: {_REASONS[name]}" if value else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return f"it must be a finite number, not {value}"
    if name == "learning_rate" and value == 0:
        return "it must be above 0: with 0 no weight changes"
    fault = range_fault(name, value)
    return None if fault is None else f"it must be {fault}"
