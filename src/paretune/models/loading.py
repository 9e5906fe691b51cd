"""Loading a model and its tokenizer, ready for training and generation."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from paretune.errors import InputError, first_line
from paretune.models.built_in import EMBEDDED, quiet
from paretune.models.padding import set_pad_token
from paretune.models.placement import Dtype, Quantization, auto_dtype, quantization_options
from paretune.models.remote_code import check_remote_code, does_not_run, needs_own_code
from paretune.models.source import model_source, not_loaded
from paretune.models.template_values import with_date, with_template_variables

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Head = Literal["language", "score", "new_score"]
"""What a model puts out: next tokens; scores, by the score head in its checkpoint (a reward model);
or one score, by a head that is drawn afresh where the checkpoint has none."""


def load_model_and_tokenizer(
    name: str | os.PathLike[str],
    dtype: Dtype = "auto",
    quantization: Quantization | None = None,
    device: "str | torch.device | None" = None,
    trust_remote_code: bool = False,
    template_variables: Mapping[str, Any] | None = None,
    date: str | None = None,
    shard: bool = False,
    head: Head = "language",
    init_kwargs: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a causal language model and its tokenizer, ready for training and generation.

    With another `head` it is a sequence classifier, to be used or trained as a reward model.

    The tokenizer gets a padding token that differs from its end-of-sequence token wherever its
    vocabulary has one to offer, so that padding is never mistaken for the end of a turn.

    Args:
        name: one of `BUILT_IN`, a folder on this machine, or a model id on the Hugging Face hub.
        dtype: number type of the weights; ``"auto"`` is bfloat16 on a CUDA device that supports
            it and float32 everywhere else.
        quantization: load the base in 8 or 4 bit (NF4) through bitsandbytes; such a model can
            only be trained through an adapter.
        device: where to put the model; by default it stays on the CPU, except that a quantised
            model goes to this process's GPU where there is one.
        trust_remote_code: run model code that comes with the checkpoint, if the user of this
            process allows it (`TRUST_VARIABLE`); what a file says is its author's word.
        template_variables: values that the chat template reads, such as ``enable_thinking`` of
            Qwen3; they hold for training and for generation alike.
        date: the day, as ISO 8601, that a chat template is told which asks for it
            (``strftime_now``); by default each day's own.
        shard: of several processes (``WORLD_SIZE``) each holds its part of the weights, by
            transformers' FSDP2; to be trained through an adapter that is added afterwards.
        head: what the model puts out.
        init_kwargs: further arguments of `from_pretrained`, which go before those above;
            ``revision`` and ``trust_remote_code`` are of the tokenizer, too.
        revision: commit, tag or branch of a model on the hub.

    Raises:
        InputError: an unknown option, a package that is missing, code of a checkpoint that nobody
            allowed to run, a model that cannot be loaded, or one without a score head where it is
            needed.
    """
    if dtype not in get_args(Dtype):
        raise InputError(
            f"dtype {dtype!r} is unknown; use 'auto', 'float32', 'bfloat16' or 'float16'"
        )
    check_remote_code(name, trust_remote_code)
    source = model_source(name)
    import torch

    torch_dtype = auto_dtype() if dtype == "auto" else getattr(torch, dtype)
    options: dict[str, Any] = {"dtype": torch_dtype}
    if quantization is not None:
        options |= quantization_options(quantization, torch_dtype, device)
    if head == "new_score":
        options["num_labels"] = 1
    if shard and (sharding := _sharding_options(head, quantization)):
        options |= sharding
        device = None  # transformers places the parts
    pinned = {} if revision is None else {"revision": revision}
    given = _checked_keywords(init_kwargs or {})
    options |= {"trust_remote_code": trust_remote_code, **pinned, **given}
    with (
        _failures_told(name, trust_remote_code, given),
        quiet() if str(name) == EMBEDDED else contextlib.nullcontext(),
    ):
        model, tokenizer, found = _from_pretrained(source, head, options)
    if head == "score":
        _check_score_head(name, model, found, trust_remote_code)
    set_pad_token(tokenizer)
    if template_variables:
        tokenizer = with_template_variables(tokenizer, template_variables)
    if date is not None and isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = with_date(tokenizer.chat_template, date)
    if head != "score" or model.config.pad_token_id is None:
        # Else the padding token is part of the model: it scores the last token that is not one.
        model.config.pad_token_id = tokenizer.pad_token_id
    if head == "language" and model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    if device is not None and quantization is None:
        torch.nn.Module.to(model, device)
    return model, tokenizer


def _checked_keywords(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` with the number type by the name that it goes by.

    Raises:
        InputError: the number type is none, or is given twice.
    """
    import torch

    found = dict(given)
    if "torch_dtype" in found:  # its former name, of which transformers would take ours instead
        if "dtype" in found:
            raise InputError("model_init_kwargs: torch_dtype is the former name of dtype: drop it")
        found["dtype"] = found.pop("torch_dtype")
    kind = found.get("dtype")
    known = isinstance(getattr(torch, kind, None), torch.dtype) if isinstance(kind, str) else True
    if not known and kind != "auto":
        raise InputError(
            f"model_init_kwargs: dtype {kind!r} is none of torch's, such as 'bfloat16'; 'auto' is "
            "that of the checkpoint"
        )
    return found


def _from_pretrained(
    source: str, head: Head, options: Mapping[str, Any]
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]":
    """Model, tokenizer, and which of the model's weights the checkpoint has."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    shared = {key: options[key] for key in ("trust_remote_code", "revision") if key in options}
    tokenizer = AutoTokenizer.from_pretrained(source, **shared)
    kind: Any = AutoModelForCausalLM if head == "language" else AutoModelForSequenceClassification
    model, found = kind.from_pretrained(source, **{**options, "output_loading_info": True})
    return model, tokenizer, found


@contextlib.contextmanager
def _failures_told(
    name: str | os.PathLike[str], trust_remote_code: bool, init_kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """Say in one sentence why a model cannot be loaded, whoever is at fault."""
    try:
        yield
    except TypeError as error:
        if init_kwargs:
            raise _not_with(name, init_kwargs, error) from error
        if trust_remote_code:
            raise does_not_run(name, error) from error
        raise
    except (OSError, ValueError) as error:
        raise not_loaded(name, error) from error
    except ImportError as error:
        raise (does_not_run if trust_remote_code else not_loaded)(name, error) from error
    except (AttributeError, KeyError) as error:
        if trust_remote_code:
            raise does_not_run(name, error) from error
        if init_kwargs:
            raise _not_with(name, init_kwargs, error) from error
        raise


def _not_with(
    name: str | os.PathLike[str], init_kwargs: Mapping[str, Any], error: Exception
) -> InputError:
    given = ", ".join(init_kwargs)
    return InputError(f"model '{name}' cannot be loaded with {given} ({first_line(error)})")


def _sharding_options(head: Head, quantization: Quantization | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` that divide a model; none where there is one process."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes <= 1:
        return {}
    if head != "language" or quantization is not None:
        what = "reward models" if head != "language" else "quantised models"
        raise InputError(f"model.shard is for language models, not for {what}: set it to false")
    from transformers.distributed.configuration_utils import DistributedConfig

    return {"distributed_config": DistributedConfig(fsdp_size=processes)}


def _check_score_head(
    name: str | os.PathLike[str], model: Any, found: Mapping[str, Any], trust_remote_code: bool
) -> None:
    """See that all of a reward model came from its checkpoint, and all of that into the model."""
    own_code = bool(getattr(model.config, "auto_map", None)) and not trust_remote_code
    if own_code and found["unexpected_keys"]:
        raise needs_own_code(name, min(found["unexpected_keys"]))
    if found["missing_keys"]:
        raise InputError(
            f"model '{name}' has no score head in its checkpoint ({min(found['missing_keys'])} is "
            "missing), so it is not a reward model; give one, or train one with "
            "`paretune reward train`"
        )
