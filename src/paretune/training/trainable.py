"""What a trainer is given: arguments that fit its launch, and a model with what is trained."""

import os
import re
import warnings
from typing import Any

from torch import nn

from paretune.errors import InputError
from paretune.models import load_model_and_tokenizer, with_template_variables
from paretune.training.checks import check_weights
from paretune.training.config import CommonConfig


def check_launch(args: CommonConfig) -> None:
    """Raise InputError for arguments of another trainer, and where something else than this one
    would own the gradients."""
    if not isinstance(args, CommonConfig):
        raise InputError(
            f"args is a {type(args).__name__}: give the configuration of this trainer, such as "
            "ClampConfig, which has all fields of transformers.TrainingArguments."
        )
    if args.n_gpu > 1:
        raise InputError(
            "Several GPUs need one process each: start with `accelerate launch` or `torchrun`."
        )


def load_trainable(
    model: Any, tokenizer: Any, peft_config: Any, args: CommonConfig
) -> tuple[nn.Module, Any]:
    """The model, loaded if it is a name and with an adapter if one is asked for, and its tokenizer.

    The tokenizer is a copy where it gets `args.chat_template_kwargs`.

    Raises:
        InputError: no tokenizer, or one without padding or the template's options, an adapter that
            does not fit, or a quantised model without one.
    """
    keywords: Any = args.model_init_kwargs
    if isinstance(model, str | os.PathLike):
        model, loaded = load_model_and_tokenizer(model, init_kwargs=keywords)
        tokenizer = loaded if tokenizer is None else tokenizer
    elif keywords:
        raise InputError(
            "model_init_kwargs are for a model given by name, and it is loaded: leave them out."
        )
    if tokenizer is None:
        raise InputError("Give the model's tokenizer as processing_class.")
    if tokenizer.pad_token_id is None:
        raise InputError(
            "The tokenizer has no padding token: set tokenizer.pad_token to a token that is not "
            "its end-of-turn token."
        )
    if args.chat_template_kwargs:
        template = tokenizer.chat_template
        for name in args.chat_template_kwargs if isinstance(template, str) else ():
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise InputError(f"chat_template_kwargs: the chat template has no option {name!r}.")
        tokenizer = with_template_variables(tokenizer, args.chat_template_kwargs)  # type: ignore[arg-type]
    if peft_config is not None:
        from peft import PeftModel, get_peft_model  # peft takes seconds to import

        if isinstance(model, PeftModel):
            raise InputError(
                "The model has an adapter already: leave out peft_config to train that one."
            )
        try:
            with warnings.catch_warnings():  # PEFT reads a name that transformers deprecates
                warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
                model = get_peft_model(model, peft_config)
        except ValueError as error:
            raise InputError(f"The adapter does not fit the model: {error}") from error
    if getattr(model, "is_quantized", False) and not getattr(model, "peft_config", None):
        raise InputError(
            "The model is quantised, and such weights cannot be trained: give peft_config, for an "
            "adapter that is."
        )
    check_weights(model)
    return model, tokenizer
