"""In which numbers a model's weights are, and where: on the CPU, a GPU, or in parts on several."""

import os
from typing import TYPE_CHECKING, Any, Literal, get_args

from paretune.errors import InputError
from paretune.extras import require

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["8bit", "4bit"]


def gpu() -> str | None:
    """``"cuda"`` if there is a GPU, else None."""
    import torch

    return "cuda" if torch.cuda.is_available() else None


def auto_dtype() -> "torch.dtype":
    """bfloat16 on a CUDA device that supports it, float32 everywhere else."""
    import torch

    # transformers' bf16 needs the hardware's own support: emulation is slower than float32.
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def check_quantization(quantization: Quantization | None) -> None:
    """See, without loading anything, that weights can be quantised so.

    Raises:
        InputError: an unknown quantisation, or bitsandbytes is missing.
    """
    if quantization not in (None, *get_args(Quantization)):
        raise InputError(f"quantization {quantization!r} is unknown; use '8bit', '4bit' or null")
    if quantization is not None:
        require("bitsandbytes", f"quantization '{quantization}'")


def quantization_options(
    quantization: Quantization, dtype: "torch.dtype", device: "str | torch.device | None"
) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantise a model and put it on this process's GPU.

    Args:
        dtype: in which 4-bit weights compute.
        device: where to put the model instead.

    Raises:
        InputError: see `check_quantization`.
    """
    check_quantization(quantization)
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
