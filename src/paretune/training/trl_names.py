"""Names that TRL's trainers have and these have not: what to write in their place."""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from paretune.errors import InputError

_REFERENCE = "the reference stays fixed: it is the model as given"
_ALWAYS = "leave it out: the reference's log-probabilities are always computed before training"
_TOKENIZER = "it is called processing_class"
_BATCHES = "leave it out: the trainer makes its own batches"

FIELDS: Mapping[str, str] = {
    "loss_type": "it is called loss: 'sigmoid' is loss='dpo', 'ipo' is loss='ipo'; 'cpo' and "
    "'simpo' are there, too",
    "loss_weights": "weights of objectives are given as preference, and each objective has one "
    "loss (a mapping as loss gives them different ones)",
    "max_prompt_length": "there is max_length for prompt and response together; prompts are never "
    "cut",
    "max_completion_length": "there is max_length for prompt and response together",
    "truncation_mode": "it is called overlong: 'drop', or 'truncate' for the ends of responses",
    "precompute_ref_log_probs": _ALWAYS,
    "precompute_ref_batch_size": "it is per_device_eval_batch_size",
    "disable_dropout": "leave it out: dropout of the base model is always off",
    "pad_token": "set it on the tokenizer, which is given as processing_class",
    "trust_remote_code": "give it in model_init_kwargs",
    "dataset_num_proc": "leave it out: one process makes the tokens",
    "padding_free": "it is called packing, and is on where it is exact",
    "label_smoothing": "the losses are those of the CLAMP paper's Table 1",
    "f_divergence_type": "the divergence is the reverse KL",
    "f_alpha_divergence_coef": "the divergence is the reverse KL",
    "ld_alpha": "there is no such loss",
    "use_weighting": "rows may have a column 'weight'",
    "discopop_tau": "there is no such loss",
    "sync_ref_model": _REFERENCE,
    "ref_model_mixup_alpha": _REFERENCE,
    "ref_model_sync_steps": _REFERENCE,
    "reference_free": "loss='simpo' or 'cpo' need no reference",
    "rpo_alpha": "loss='cpo' has nll_weight",
    "simpo_gamma": "it is called gamma",
    "cpo_alpha": "it is called nll_weight",
    "router_aux_loss_coef": "there is no such term",
    "pad_to_multiple_of": "leave it out: batches are packed, or padded to their longest",
    "activation_offloading": "use gradient_checkpointing=True",
    "model_adapter_name": "the adapter that is active is trained",
    "ref_adapter_name": _REFERENCE,
    # Of former releases.
    "ref_model_init_kwargs": _REFERENCE,
    "force_use_ref_model": _REFERENCE,
    "max_target_length": "there is max_length for prompt and response together",
    "label_pad_token_id": _BATCHES,
    "padding_value": _BATCHES,
    "dataset_kwargs": _BATCHES,
    "use_logits_to_keep": "leave it out: logits are taken in pieces, of responses only",
    "use_liger_loss": "its fused losses leave no log-probabilities of responses to read",
    "is_encoder_decoder": "leave it out: models have a decoder only",
    "generate_during_eval": "`paretune sweep` lets every point answer; here a callback can",
    "base_model_attribute_name": "leave it out: it is found by itself",
    "eos_token": "set it on the tokenizer, which is given as processing_class",
    "packing_strategy": "there is packing, which is on where it is exact",
    # Of transformers before 5.
    "logging_dir": "set the variable TENSORBOARD_LOGGING_DIR",
    "warmup_ratio": "it is warmup_steps, below 1",
    "evaluation_strategy": "it is called eval_strategy",
    "no_cuda": "it is called use_cpu",
    "group_by_length": "leave it out: rows have no length to be grouped by",
    "save_safetensors": "leave it out: weights are always saved so",
    "overwrite_output_dir": "leave it out: train() says by itself whether it resumes",
    "fp16_backend": "leave it out: bf16 or fp16 say all",
    "half_precision_backend": "leave it out: bf16 or fp16 say all",
}
"""Fields of TRL's `DPOConfig`, `CPOConfig`, and of older ones."""

ARGUMENTS: Mapping[str, str] = {
    "ref_model": "leave it out: the reference is the model as given, with its adapter off",
    "data_collator": _BATCHES,
    "formatting_func": "leave it out: rows are written by the chat template",
    "tools": "rows may have a column 'tools'",
    "reward_funcs": "no rewards are trained on, but pairs",
    "tokenizer": _TOKENIZER,
    "compute_metrics": "loss, accuracy and margin of each objective are measured; for more use "
    "callbacks",
    "preprocess_logits_for_metrics": "loss, accuracy and margin of each objective are measured",
    "compute_loss_func": "the loss is given as loss of the arguments",
    "model_init": "give the model, or its name with model_init_kwargs of the arguments",
    "quantization_config": "give it in model_init_kwargs of the arguments",
    "optimizer_cls_and_kwargs": "give optimizers, or optim of the arguments",
}
"""Arguments of TRL's and transformers' trainers."""


def check_names(kind: type, given: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Check that a class has arguments of these names.

    Args:
        known: What to say of some that it has not.

    Raises:
        InputError: it has not.
    """
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return  # a class of the user's own
    names = list(parameters)[1:]
    config: Any = parameters["args"].annotation if "args" in parameters else None
    for name in given:
        if name in names:
            continue
        hint = known.get(name)
        if hint is None and name in getattr(config, "__dataclass_fields__", ()):
            hint = f"it is a field of the arguments: args={config.__name__}({name}=...)"
        elif hint is None and config is not None:
            hint = FIELDS.get(name)
        nearest = get_close_matches(name, names, n=1)
        hint = hint or (nearest and f"did you mean {nearest[0]!r}?") or "leave it out"
        end = "" if hint.endswith("?") else "."
        raise InputError(f"{kind.__name__} has no argument {name!r}: {hint}{end}")
