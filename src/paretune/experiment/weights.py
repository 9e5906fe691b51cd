"""Trained weights read back: those that were saved, whole and finite, or an error that says so."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from paretune.files import read_object
from paretune.results.weights import ADAPTER, check_weights, damaged

_UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError)


def load_weights(model: Any, folder: Path) -> None:
    """Put the adapter (or, after full fine-tuning, all weights) saved in `folder` into `model`.

    Raises:
        InputError: files that are missing, not as they were saved, of another shape or not finite.
    """
    if not hasattr(model, "peft_config"):
        _load_model(model, folder)
        return
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    saved = read_adapter(folder)
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    _check_complete(folder / ADAPTER[1], saved, wanted)
    set_peft_model_state_dict(model, saved)


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The tensors of the adapter in a folder, on the CPU.

    Raises:
        InputError: its files are missing, not as they were saved, without tensors or not finite.
    """
    from peft import load_peft_weights

    check_weights(folder)
    config, path = (folder / name for name in ADAPTER)
    settings = read_object(config)
    # PEFT imports the module that megatron_core names.
    if settings.get("peft_type") != "LORA" or settings.get("megatron_config"):
        raise damaged(config, "it is not the configuration of an adapter that is trained here")
    try:
        saved: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu")
    except _UNREADABLE as error:
        raise damaged(path, str(error)) from error
    if not saved:
        raise damaged(path, "it holds no tensors")
    _check_finite(path, saved)
    return saved


def with_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """A `PeftModel` of `model` with the adapter in `folder`; of such a model, one adapter more.

    Raises:
        InputError: see `read_adapter`, or it does not fit the model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    saved = read_adapter(folder)
    try:
        with warnings.catch_warnings():  # of missing and of tied weights: seen to elsewhere
            warnings.simplefilter("ignore", UserWarning)
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except _UNREADABLE as error:
        raise damaged(folder / ADAPTER[0], " ".join(str(error).split())[:200]) from error
    wanted = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    _check_complete(folder / ADAPTER[1], saved, wanted)
    return model


def _check_complete(path: Path, saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """See that a file has every weight that an adapter has, in its shape."""
    for name, tensor in wanted.items():
        if name not in saved:
            raise damaged(path, f"{name} is not in it")
        if saved[name].shape != tensor.shape:
            shapes = f"{tuple(saved[name].shape)}, not {tuple(tensor.shape)}"
            raise damaged(path, f"{name} has the shape {shapes}")


def _load_model(model: Any, folder: Path) -> None:
    check_weights(folder)
    path = folder / "model.safetensors"
    try:
        saved, found = type(model).from_pretrained(
            folder, dtype=model.dtype, output_loading_info=True
        )
    except _UNREADABLE as error:
        raise damaged(path, " ".join(str(error).split())[:200]) from error
    if found["missing_keys"]:
        raise damaged(path, f"{min(found['missing_keys'])} is not in it")
    _check_finite(path, saved.state_dict())
    model.load_state_dict(saved.state_dict())


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise damaged(path, f"{name} is not finite")
