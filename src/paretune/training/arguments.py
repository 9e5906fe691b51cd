"""Checks of the trainers' arguments: every field has its effect, is refused, or is listed here.

``transformers.TrainingArguments`` has fields that do nothing in these trainers, or break what they
promise. `check_fields` refuses them in a sentence; docs/training-arguments.md is made of the lists.
"""

import math
import numbers
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments

from paretune.errors import InputError

_LOSS = "the losses are those of the CLAMP paper's Table 1, and no other loss is computed"
_OWN_EVALUATION = "evaluation computes log-probabilities and nothing else"
_OWN_STEP = "the gradients of a step are taken one for each objective, past the wrapped model"
_HUB = (
    "checkpoints stay on this machine: `paretune push RUN --repo NAME/REPOSITORY` takes a finished "
    "run to the hub, push_to_hub() of a trained model that model"
)

REFUSED: Mapping[str, str] = {
    "label_smoothing_factor": _LOSS,
    "average_tokens_across_devices": "losses are means over pairs, over all processes",
    "neftune_noise_alpha": "with noise the policy would start away from its reference",
    "torch_compile": _OWN_STEP,
    "torch_compile_backend": _OWN_STEP,
    "torch_compile_mode": _OWN_STEP,
    "use_liger_kernel": "its fused losses leave no log-probabilities of responses to read",
    "liger_kernel_config": "its fused losses leave no log-probabilities of responses to read",
    "use_cache": "training keeps no key-value cache",
    "torch_empty_cache_steps": "a step has one gradient bank that is used again",
    "auto_find_batch_size": "a batch size found by chance cannot be repeated: set "
    "per_device_train_batch_size and gradient_accumulation_steps",
    "ignore_data_skip": "a resumed run would see other data than one that nothing disturbed",
    "remove_unused_columns": "batches are not columns",
    "resume_from_checkpoint": "give it to trainer.train(resume_from_checkpoint=...); "
    "`paretune sweep` resumes by itself",
    "bf16_full_eval": "evaluation runs in the training's precision: use bf16=True",
    "fp16_full_eval": "evaluation runs in the training's precision: use fp16=True",
    "prediction_loss_only": _OWN_EVALUATION,
    "eval_do_concat_batches": _OWN_EVALUATION,
    "eval_use_gather_object": _OWN_EVALUATION,
    "eval_accumulation_steps": _OWN_EVALUATION,
    "include_for_metrics": _OWN_EVALUATION,
    "batch_eval_metrics": _OWN_EVALUATION,
    "label_names": _OWN_EVALUATION,
    "length_column_name": "rows are drawn at random or in order",
    "accelerator_config": "how rows are split over processes is the trainer's own",
    "parallelism_config": "the gradients of all objectives are kept whole: use distributed data "
    "parallel",
    "fsdp": "FSDP owns the gradients, which cannot then be kept per objective: use distributed "
    "data parallel (`accelerate launch --multi_gpu`)",
    "fsdp_config": "FSDP owns the gradients, which cannot then be kept per objective: use "
    "distributed data parallel (`accelerate launch --multi_gpu`)",
    "deepspeed": "DeepSpeed owns the gradients, which cannot then be kept per objective: use "
    "distributed data parallel (`accelerate launch --multi_gpu`)",
    "ddp_find_unused_parameters": _OWN_STEP,
    "ddp_bucket_cap_mb": _OWN_STEP,
    "ddp_broadcast_buffers": _OWN_STEP,
    "ddp_static_graph": _OWN_STEP,
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ),
        _HUB,
    ),
}
"""Fields that only their default is taken for, and why."""

NOT_APPLYING: Mapping[str, str] = {
    "do_train": "a flag for scripts",
    "do_eval": "a flag for scripts; eval_strategy decides",
    "do_predict": "a flag for scripts",
    "local_rank": "set by the launcher",
    "logging_nan_inf_filter": "steps with NaN or infinity are skipped and counted",
}
"""Fields that are taken and do nothing."""

_SPECIAL: Mapping[str, str] = {
    "train_sampling_strategy": "'random' or 'sequential'; rows have no length to be grouped by",
    "save_only_model": "such a checkpoint cannot be resumed: a run that is cut short starts anew",
    "metric_for_best_model": "a measure of evaluate(); by default eval_chebyshev",
    "greater_is_better": "by default True for accuracies and margins, else False",
    "fp16": "needs a GPU; DataWeightingTrainer: refused, use bf16",
    "save_total_limit": "one more is kept until the newest is complete",
}
"""Fields whose effect differs from that in transformers."""

# fmt: off
NEUTRAL = frozenset({
    "output_dir", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node",
    "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project",
    "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "include_num_input_tokens_seen", "per_device_eval_batch_size", "save_strategy",
    "save_steps", "save_only_model", "save_on_each_node", "save_total_limit",
    "enable_jit_checkpoint", "use_cpu", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "activation_checkpointing",
    "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "ddp_backend", "ddp_timeout", "debug",
    "skip_memory_metrics", "full_determinism", "restore_callback_states_from_checkpoint",
    "reference_cache", "packing", "tokens_per_batch", "max_nonfinite_steps", "eval_strategy",
    "eval_steps", "eval_delay", "eval_on_start", "preference", "model_init_kwargs",
    "chat_template_kwargs",
    *NOT_APPLYING,
})
# fmt: on
"""Fields that may differ when a run is resumed: they do not change the steps that are taken."""

_CHOOSING = ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start")
"""Fields that matter only where evaluations decide on the result."""

# Name: lowest, highest, and whether the lowest itself is allowed.
_RANGES: Mapping[str, tuple[float, float, bool]] = {
    "learning_rate": (0, math.inf, True),
    "weight_decay": (0, math.inf, True),
    "adam_beta1": (0, 1, True),
    "adam_beta2": (0, 1, True),
    "adam_epsilon": (0, math.inf, False),
    "max_grad_norm": (0, math.inf, True),
    "warmup_steps": (0, math.inf, True),
    "num_train_epochs": (0, math.inf, False),
    "per_device_train_batch_size": (1, math.inf, True),
    "per_device_eval_batch_size": (1, math.inf, True),
    "gradient_accumulation_steps": (1, math.inf, True),
    "max_nonfinite_steps": (1, math.inf, True),
    "max_length": (2, math.inf, True),
    "tokens_per_batch": (1, math.inf, True),
    "early_stopping_patience": (0, math.inf, True),
    "save_steps": (0, math.inf, False),
    "logging_steps": (0, math.inf, False),
    "eval_steps": (0, math.inf, False),
    "eval_delay": (0, math.inf, True),
    "save_total_limit": (1, math.inf, True),
    "warmup_ratio": (0, math.inf, True),
    "torch_empty_cache_steps": (1, math.inf, True),
    "eval_accumulation_steps": (1, math.inf, True),
    "ddp_bucket_cap_mb": (1, math.inf, True),
    "dataloader_num_workers": (0, math.inf, True),
    "dataloader_prefetch_factor": (1, math.inf, True),
    "ddp_timeout": (0, math.inf, False),
    "seed": (0, 2**32, True),
    "data_seed": (0, 2**32, True),
    "x_learning_rate": (0, math.inf, True),
    "ridge": (0, math.inf, True),
    "held_out": (0, 1, True),
    "x_every": (1, math.inf, True),
    "entropy": (0, math.inf, True),
}


def check_fields(args: TrainingArguments) -> None:
    """Check every field of a configuration as it was given, before transformers changes it.

    Raises:
        InputError: a field that has no effect here, a number out of range or none at all, or a
            word that is not one of a field's choices.
    """
    hints = get_type_hints(type(args))
    for field in fields(args):
        name, value = field.name, getattr(args, field.name)
        if name in REFUSED and not _as_default(field, value):
            raise InputError(f"{name} does not apply to {type(args).__name__}: {REFUSED[name]}.")
        _check_kind(name, value, hints[name])
        if fault := range_fault(name, value):
            raise InputError(f"{name} must be {fault}.")
    check_choice("train_sampling_strategy", args.train_sampling_strategy, ("random", "sequential"))
    if args.dataloader_persistent_workers and args.dataloader_num_workers == 0:
        raise InputError("dataloader_persistent_workers needs dataloader_num_workers above 0.")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise InputError unless `value` is one of the choices; the nearest is suggested."""
    known = list(choices)
    if value in known:
        return
    nearest = get_close_matches(str(value), known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(known)}."
    raise InputError(f"{name} is {value!r}, which it does not know; {hint}")


def check_numbers(name: str, values: Mapping[str, float] | None) -> None:
    """Raise InputError unless `values` gives a finite number for each name."""
    if values is None:
        return
    if not isinstance(values, Mapping):
        raise InputError(f"{name} must give a number for each objective, not {values!r}.")
    for key, value in values.items():
        if not _is_number(value) or not math.isfinite(value):
            raise InputError(f"{name} of {key!r} must be a finite number, not {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _as_default(field: Field[Any], value: Any) -> bool:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if value == default or (not value and not default):
        return True
    # What transformers itself makes of a default, when a configuration is copied.
    if field.name == "accelerator_config":
        from transformers.trainer_pt_utils import AcceleratorConfig

        return bool(value == AcceleratorConfig())
    if field.name == "hub_strategy":
        return str(getattr(value, "value", value)) == default
    return False


def _check_kind(name: str, value: Any, hint: Any) -> None:
    """A number where the field holds numbers only, a yes or no, one of a field's choices."""
    union = get_origin(hint) in (Union, types.UnionType)
    options = get_args(hint) if union else (hint,)
    kinds = [option for option in options if option is not types.NoneType]
    if value is None and types.NoneType in options:
        return
    if kinds and all(get_origin(kind) is Literal for kind in kinds):
        check_choice(name, value, [word for kind in kinds for word in get_args(kind)])
    elif kinds and all(kind in (int, float) for kind in kinds):
        if not _is_number(value):
            raise InputError(f"{name} must be a number, not {value!r}.")
        if not math.isfinite(value):
            raise InputError(f"{name} must be finite, not {value}.")
        if kinds == [int] and not isinstance(value, numbers.Integral):
            raise InputError(f"{name} must be a whole number, not {value}.")
    elif kinds == [bool] and not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, not {value!r}.")


def range_fault(name: str, value: Any) -> str | None:
    """What a number given for a field must be, if it is out of range: ``"above 0, not -1"``."""
    if name == "max_steps":
        return None if value >= 1 or value == -1 else f"at least 1 (or -1: by epochs), not {value}"
    if name not in _RANGES or value is None:
        return None
    low, high, inclusive = _RANGES[name]
    if (low <= value if inclusive else low < value) and value < high:
        return None
    lower = f"at least {low:g}" if inclusive else f"above {low:g}"
    upper = "" if high == math.inf else f" and below {high:.15g}"
    return f"{lower}{upper}, not {value}"


def lasting(args: TrainingArguments) -> dict[str, Any]:
    """The fields that decide on the steps taken, as JSON has them: what a resumed run must share.

    The length of a run is left out where no schedule depends on it.
    """
    left_out = set(NEUTRAL)
    if args.load_best_model_at_end:
        left_out -= set(_CHOOSING)
    schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    constant = schedule in ("constant", "constant_with_warmup") and not 0 < args.warmup_steps < 1
    if constant and getattr(args, "mu_schedule", "constant") == "constant":
        left_out |= {"max_steps", "num_train_epochs"}
    elif args.max_steps > 0:
        left_out.add("num_train_epochs")
    kept = {name: value for name, value in args.to_dict().items() if name not in left_out}
    return {name: kept[name] for name in sorted(kept) if name not in REFUSED}


def field_table() -> str:
    """The Markdown table of inherited fields that do something else here than in transformers."""
    rows = [
        *((name, "refused", REFUSED[name]) for name in REFUSED),
        *((name, "no effect", NOT_APPLYING[name]) for name in NOT_APPLYING),
        *((name, "its own", _SPECIAL[name]) for name in _SPECIAL),
    ]
    lines = ["| argument | here | why |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| `{name}` | {what} | {why} |" for name, what, why in sorted(rows)])
