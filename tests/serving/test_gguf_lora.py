"""Adapters as llama.cpp reads them: names, scale, and the order of queries' and keys' rows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, Qwen2Config, Qwen2ForCausalLM

from paretune.errors import InputError
from paretune.serving.gguf_lora import reordered, write_lora


def rotated(x: np.ndarray, position: int, interleaved: bool) -> np.ndarray:
    """Rotary embedding of one head, (d,): halves apart as here, or neighbours as in llama.cpp."""
    half = len(x) // 2
    angles = position * 10_000.0 ** (-np.arange(half) / half)
    first, second = (x[0::2], x[1::2]) if interleaved else (x[:half], x[half:])
    turned = first * np.cos(angles) - second * np.sin(angles)
    other = first * np.sin(angles) + second * np.cos(angles)
    if interleaved:
        return np.stack([turned, other], axis=1).ravel()
    return np.concatenate([turned, other])


def test_reordered_rows_attend_alike() -> None:
    """Scores of queries and keys are the same, each under its own rotary embedding."""
    config = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2)
    draw = np.random.default_rng(0)
    query, key = draw.normal(size=(4 * 6, 3)), draw.normal(size=(2 * 6, 3))
    moved = [reordered(query, "q_proj", config), reordered(key, "k_proj", config)]
    x, y = draw.normal(size=(2, 3))
    for head in range(4):
        rows, shared = slice(6 * head, 6 * head + 6), slice(6 * (head // 2), 6 * (head // 2) + 6)
        here = rotated((query @ x)[rows], 5, False) @ rotated((key @ y)[shared], 2, False)
        there = rotated((moved[0] @ x)[rows], 5, True) @ rotated((moved[1] @ y)[shared], 2, True)
        assert here == pytest.approx(there)
    assert reordered(key, "v_proj", config) is key


def saved(model: Any, folder: Path, **options: Any) -> Any:
    """A random adapter of a model, saved; returns the model with it."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **options}
    made = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(folder, save_embedding_layers=False)
    return made


@pytest.mark.parametrize("rslora", [False, True])
def test_read_back_it_is_the_same_change(tiny_llama: Any, tmp_path: Path, rslora: bool) -> None:
    model = saved(tiny_llama(), tmp_path / "adapter", use_rslora=rslora)
    config = model.get_base_model().config
    write_lora(tmp_path / "adapter", tmp_path / "out" / "a.gguf", config)
    read = gguf.GGUFReader(tmp_path / "out" / "a.gguf")
    fields = {name: field.contents() for name, field in read.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    tensors = {tensor.name: np.array(tensor.data) for tensor in read.tensors}
    names = {
        "blk.1.attn_q": "model.layers.1.self_attn.q_proj",
        "blk.0.attn_k": "model.layers.0.self_attn.k_proj",
        "blk.0.attn_v": "model.layers.0.self_attn.v_proj",
        "blk.1.attn_output": "model.layers.1.self_attn.o_proj",
        "blk.0.ffn_gate": "model.layers.0.mlp.gate_proj",
        "blk.1.ffn_down": "model.layers.1.mlp.down_proj",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for place, layer in names.items():
        a, b = (tensors[f"{place}.weight.lora_{side}"] for side in "ab")
        change = fields["adapter.lora.alpha"] / b.shape[1] * b @ a
        if place[6:] in heads:  # undo: row 2 i + h of a head is its row h d/2 + i here
            size = b.shape[0] // heads[place[6:]]
            order = [h * size // 2 + i for i in range(size // 2) for h in (0, 1)]
            for head in range(heads[place[6:]]):
                block = change[head * size : (head + 1) * size].copy()
                change[[head * size + row for row in order]] = block
        module = model.get_base_model().get_submodule(layer)
        np.testing.assert_allclose(
            change, module.get_delta_weight("default").detach().numpy(), atol=1e-6
        )
    assert len(tensors) == 2 * 7 * 2


def test_rows_of_qwen_stay(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32}
    config = Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)
    model = saved(Qwen2ForCausalLM(config), tmp_path / "adapter")
    write_lora(tmp_path / "adapter", tmp_path / "a.gguf", model.get_base_model().config)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    layer = model.get_base_model().model.layers[0].self_attn.k_proj
    np.testing.assert_array_equal(
        read["blk.0.attn_k.weight.lora_b"].data, layer.lora_B["default"].weight.detach().numpy()
    )


def test_what_llama_cpp_has_not_is_said(tiny_llama: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="qwen3, not gpt2: convert"):
        write_lora(tmp_path, tmp_path / "a.gguf", GPT2Config())
    model = saved(tiny_llama(), tmp_path / "head", target_modules=["lm_head"])
    tied = model.get_base_model().config
    tied.tie_word_embeddings = True
    with pytest.raises(InputError, match="leave lm_head out"):
        write_lora(tmp_path / "head", tmp_path / "a.gguf", tied)
