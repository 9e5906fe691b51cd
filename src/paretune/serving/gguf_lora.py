"""LoRA adapters as llama.cpp reads them.

Source: the layout that ggml-org/llama.cpp's ``convert_lora_to_gguf.py`` writes. Tensors have the
names of the base model's with ``.lora_a`` and ``.lora_b`` after them; llama.cpp multiplies B A by
alpha / rank and the scale that its user gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from paretune.errors import InputError
from paretune.files import read_json
from paretune.results.weights import ADAPTER

Array = NDArray[np.float32]
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Family:
    """How llama.cpp has the models of an architecture.

    Attributes:
        name: of the architecture in GGUF files.
        interleaved: rotary embeddings turn neighbouring pairs of a head's rows there, which here
            are halves apart: rows of queries and keys stand in another order.
    """

    name: str
    interleaved: bool


FAMILIES = {
    "llama": Family("llama", interleaved=True),
    "mistral": Family("llama", interleaved=True),
    "qwen2": Family("qwen2", interleaved=False),
    "qwen3": Family("qwen3", interleaved=False),
}
"""By the model type of transformers' configuration."""


def family_of(config: Any) -> Family:
    """The family of a model, by transformers' configuration.

    Raises:
        InputError: it is none that is known here.
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    raise InputError(
        f"--gguf knows models of type {', '.join(FAMILIES)}, not {config.model_type}: convert the "
        "exported adapter with llama.cpp's own convert_lora_to_gguf.py."
    )


def write_lora(adapter: Path, target: Path, config: Any) -> None:
    """Write the PEFT adapter in a folder as a GGUF file, in float32.

    Args:
        config: transformers' configuration of the base model.

    Raises:
        InputError: an architecture that is not known here, or a layer that llama.cpp has not.
    """
    import gguf

    family = family_of(config)
    saved = read_json(adapter / ADAPTER[0])
    rank = int(saved["r"])
    scale = saved["lora_alpha"] / (rank**0.5 if saved.get("use_rslora") else rank)
    architectures = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(architectures[family.name], config.num_hidden_layers)
    tensors: dict[str, Array] = {}
    for key, tensor in load_file(adapter / ADAPTER[1]).items():
        layer, _, kind = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        place = names.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        if place is None or kind not in ("A", "B"):
            raise InputError(f"llama.cpp has no layer for the adapter's {key!r}.")
        if place.startswith("output.") and config.tie_word_embeddings:
            raise InputError(
                "llama.cpp keeps no head of its own for a model with tied embeddings, which the "
                "adapter changes: train with lora.target_modules that leave lm_head out."
            )
        values = tensor.float().numpy()
        if kind == "B" and family.interleaved:
            values = reordered(values, layer.rpartition(".")[2], config)
        tensors[f"{place}.lora_{kind.lower()}"] = values
    _write(target, family, scale * rank, tensors)


def reordered(values: Array, module: str, config: Any) -> Array:
    """Rows of a query or key projection as llama.cpp has them; others as they are."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module)
    if heads is None:
        return values
    rows = values.reshape(heads, 2, values.shape[0] // heads // 2, values.shape[1])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(values.shape))


def _write(target: Path, family: Family, alpha: float, tensors: Mapping[str, Array]) -> None:
    import gguf

    target.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(target, family.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(target.stem)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
