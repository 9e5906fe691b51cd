"""Names that TRL's trainers have and these have not: what to write in their place."""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from paretune.errors import InputError

_REFERENCE = "the reference stays fixed: it is the model as given"
_ALWAYS = "leave it out: the reference's log-probabilities are always computed before training"
_TOKENIZER = "it is called processing_class"

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
}
"""Fields of TRL's `DPOConfig`, `CPOConfig` and older ones."""

ARGUMENTS: Mapping[str, str] = {
    "ref_model": "leave it out: the reference is the model as given, with its adapter off",
    "data_collator": "leave it out: the trainer makes its own batches",
    "tokenizer": _TOKENIZER,
    "compute_metrics": "loss, accuracy and margin of each objective are measured; for more use "
    "callbacks",
    "preprocess_logits_for_metrics": "loss, accuracy and margin of each objective are measured",
    "compute_loss_func": "the loss is given as loss of the arguments",
    "model_init": "give the model, or its name with model_init_kwargs of the arguments",
    "quantization_config": "give it in model_init_kwargs of the arguments",
    "preference": "it is a field of the arguments: args=ClampConfig(preference=...)",
    "optimizer_cls_and_kwargs": "give optimizers, or optim of the arguments",
    "max_length": "it is a field of the arguments",
    "beta": "it is a field of the arguments",
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
    for name in given:
        if name in names:
            continue
        nearest = get_close_matches(name, names, n=1)
        hint = known.get(name) or (nearest and f"did you mean {nearest[0]!r}?") or "leave it out"
        end = "" if hint.endswith("?") else "."
        raise InputError(f"{kind.__name__} has no argument {name!r}: {hint}{end}")
