"""The `train` sections of a recipe: which keys there are, of which types, and which are no use.

The types are those of transformers' arguments, which take seconds to import.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from paretune.errors import validation_problem
from paretune.losses import LOSSES
from paretune.moo.weightings import ClampOptions
from paretune.names import shown
from paretune.options import options_of
from paretune.recipes.dial import TRAINER_OPTIONS
from paretune.training.arguments import REFUSED, range_fault
from paretune.training.config import MultiObjectiveConfig

# The keys of a recipe that give the trainer's arguments of these names.
ELSEWHERE = {
    "output_dir": "output_dir",
    "preference": "sweep.preferences",
    "model_init_kwargs": "model",
    "chat_template_kwargs": "model.template_variables",
    "seed": "sweep.seeds",
    "loss": "loss",
    **{o.name: f"loss.{o.key}" for kind in LOSSES.values() for o in options_of(kind) if o.key},
    **{option.name: f"method.{option.key}" for option in options_of(ClampOptions)},
    **{name: f"method.{name}" for name in TRAINER_OPTIONS},
}

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


def checked_section(
    given: Mapping[str, Any],
    kind: Any = MultiObjectiveConfig,
    section: str = "train",
    elsewhere: Mapping[str, str] = ELSEWHERE,
    source: str = "the recipe",
) -> tuple[dict[str, Any], list[str]]:
    """The trainer's arguments in a section, with values of the right types, and all complaints.

    Args:
        kind: The dataclass whose fields they are.
        section: Dotted name of the section, for messages.
        elsewhere: Fields that the recipe gives at other keys, and those keys.
        source: Where the recipe is from, for messages.

    Returns:
        The arguments that are right, and a sentence for each that is not, unknown keys first.
    """
    known = {field.name for field in fields(kind) if field.init}
    types = get_type_hints(kind)
    checked: dict[str, Any] = {}
    unknown, faults = [], []
    for name, value in given.items():
        key = f"'{section}.{name}'"
        if name in elsewhere:
            unknown.append(f"{source}: {key} has its own place in a recipe: '{elsewhere[name]}'.")
        elif name not in known:
            nearest = get_close_matches(name, known, n=1)
            page = "see docs/guides/recipes.md."
            meant = [elsewhere.get(each, f"{section}.{each}") for each in nearest]
            hint = f"did you mean '{meant[0]}'?" if meant else page
            unknown.append(f"Unknown key {key} in {source}; {hint}")
        else:
            adapter = TypeAdapter(types[name], config=ConfigDict(arbitrary_types_allowed=True))
            try:
                checked[name] = adapter.validate_python(value, strict=True)
            except ValidationError as error:
                problem = validation_problem(error.errors()[0])
                faults.append(f"{source}: {key} is {shown(value)}, but {problem}.")
                continue
            if fault := key_fault(name, value):
                faults.append(f"{source}: {key}: {fault}.")
    return checked, unknown + faults
