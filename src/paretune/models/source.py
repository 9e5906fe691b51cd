"""Which model a name means, and whether there is one."""

import os

from paretune.errors import InputError, first_line
from paretune.models.built_in import BUILT_IN, EMBEDDED, TOY, built_in_folder, embedded_gguf
from paretune.models.placement import Quantization, check_quantization
from paretune.models.remote_code import check_remote_code


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
    source = model_source(name)
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(
            source, trust_remote_code=trust_remote_code, revision=revision or "main"
        )
    except (OSError, ValueError) as error:
        raise not_loaded(name, error) from error


def check_place(
    name: str | os.PathLike[str],
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
) -> None:
    """The part of `check_model` that takes no time: it neither loads transformers nor asks the hub.

    Raises:
        InputError: as `check_model` does, or what quantises the model is not installed.
    """
    check_quantization(quantization)
    check_remote_code(name, trust_remote_code)
    if str(name) == EMBEDDED:
        embedded_gguf()
    elif str(name) != TOY:
        model_source(name)


def model_source(name: str | os.PathLike[str]) -> str:
    """The folder or hub id from which transformers loads a model.

    Raises:
        InputError: it reads like a folder, and there is none; or the embedded model is missing.
    """
    if str(name) in BUILT_IN:
        return str(built_in_folder(str(name)))
    source = os.path.expanduser(name)
    if _looks_like_path(source) and not os.path.isdir(source):
        raise InputError(
            f"model folder '{name}' does not exist; give an existing folder, a hub id, "
            f"or '{EMBEDDED}' for the embedded model"
        )
    return source


def not_loaded(name: str | os.PathLike[str], error: Exception) -> InputError:
    """What is said of a model that transformers cannot load."""
    if _is_gated(error):
        from huggingface_hub.constants import ENDPOINT

        return InputError(
            f"model '{name}' is gated, and this account or token has no access: accept its terms "
            f"at {ENDPOINT}/{name}, and log in with `hf auth login`"
        )
    return InputError(
        f"model '{name}' could not be loaded ({first_line(error)}); give an existing folder, "
        f"a hub id you can reach, or '{EMBEDDED}' for the embedded model"
    )


def _is_gated(error: BaseException | None) -> bool:
    """Whether the hub refused a file for terms that were not accepted."""
    from huggingface_hub.errors import GatedRepoError

    while error is not None and not isinstance(error, GatedRepoError):
        error = error.__cause__ or error.__context__
    return error is not None


def _looks_like_path(name: str) -> bool:
    """A hub id has at most one slash and does not start like a path."""
    return name.startswith((".", os.sep)) or name.count("/") > 1 or "\\" in name
