"""A LoRA whose rank dimension is gated: the gate on a model, and folding it into a stock adapter.

``y = W x + s B (c(q) ∘ (A x))``, A and B of rank M·r, c constant on each of M blocks
(`paretune.moo.gates`). At a fixed position q the factors fold into the columns of B, exactly.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paretune.errors import InputError
from paretune.logprobs import current_stage
from paretune.moo.gates import Gate
from paretune.results.gates import read_gates

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class GatedAdapter:
    """The gate on every LoRA layer of a model: multiplies what A gives, before B.

    Args:
        model: a PEFT model whose one LoRA adapter has rank M·r.
        gate: the factors of its M blocks.

    Raises:
        InputError: an adapter that is not plain LoRA, or whose rank M does not divide.
    """

    def __init__(self, model: Any, gate: Gate) -> None:
        self.gate = gate
        name = model.active_adapter
        config = model.peft_config[name]
        obstacle = _obstacle(config)
        if obstacle is not None:
            raise InputError(f"The adapter cannot be conditioned on a preference: it {obstacle}.")
        if config.r % gate.n_objectives:
            raise InputError(
                f"An adapter of rank {config.r} has no {gate.n_objectives} blocks of equal rank."
            )
        self.rank = config.r // gate.n_objectives
        """r, of each block."""
        self._factors: Tensor | None = None
        layers = [m.lora_A[name] for m in model.modules() if name in getattr(m, "lora_A", {})]
        for layer in layers:
            layer.register_forward_hook(self._multiply)
        self.device = layers[0].weight.device

    def set(self, positions: object) -> None:
        """Put the gate to one position ``(M,)``, or to one for each sequence ``(N, M)``."""
        factors = torch.tensor(self.gate.factors(positions), dtype=torch.float32)
        self._factors = factors.repeat_interleave(self.rank, dim=-1).to(self.device)

    @contextmanager
    def at(self, position: object) -> Iterator[None]:
        """The gate at one position for a while."""
        before = self._factors
        self.set(position)
        try:
            yield
        finally:
            self._factors = before

    def _multiply(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self._factors is None:
            raise InputError("The gate has no position yet: set it to a preference first.")
        factors = self._factors.to(output.device, output.dtype)
        if factors.dim() == 2:  # one for each sequence, of which a packed row holds tokens
            stage = current_stage()
            factors = factors[:, None] if stage is None else factors[stage.row.sequence]
        return output * factors


def _obstacle(config: Any) -> str | None:
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        return "is not LoRA"
    found = {
        "is DoRA": config.use_dora,
        "trains biases along": config.bias != "none" or getattr(config, "lora_bias", False),
        "trains whole modules along (modules_to_save)": config.modules_to_save,
        "trains tokens along": getattr(config, "trainable_token_indices", None),
        "has ranks or scales that differ between layers": config.rank_pattern
        or config.alpha_pattern,
    }
    return next((reason for reason, given in found.items() if given), None)


def conditioned_config(peft_config: Any, n_objectives: int) -> Any:
    """The user's LoRA, whose rank is that of a block, as one LoRA of all M blocks."""
    obstacle = _obstacle(peft_config)
    if obstacle is not None:
        raise InputError(f"peft_config cannot be conditioned on a preference: it {obstacle}.")
    scale = n_objectives**0.5 if peft_config.use_rslora else n_objectives  # s = α / r, or α / √r
    return replace(
        peft_config, r=peft_config.r * n_objectives, lora_alpha=peft_config.lora_alpha * scale
    )


def fold(state: Mapping[str, Tensor], gate: Gate, position: Sequence[float]) -> dict[str, Tensor]:
    """A gated LoRA's tensors as those of a stock LoRA that is the same model at `position`.

    Raises:
        InputError: a position that does not fit the gate, or tensors of another adapter.
    """
    factors = torch.tensor(gate.factors(position), dtype=torch.float64)
    folded = {}
    for name, tensor in state.items():
        if ".lora_B." in name:
            if tensor.shape[1] % gate.n_objectives:
                raise InputError(
                    f"{name} has rank {tensor.shape[1]}, which is not {gate.n_objectives} blocks."
                )
            columns = factors.repeat_interleave(tensor.shape[1] // gate.n_objectives)
            folded[name] = (tensor.double() * columns.to(tensor.device)).to(tensor.dtype)
        else:
            folded[name] = tensor
    return {name: tensor.contiguous() for name, tensor in folded.items()}


def fold_adapter(source: Path, target: Path, position: Sequence[float]) -> None:
    """Write the gated adapter in `source` as a stock PEFT adapter at `position` to `target`.

    Raises:
        InputError: there is no gated adapter, or the position does not fit it.
    """
    gate, _, _ = read_gates(source)
    tensors = fold(load_file(source / _WEIGHTS), gate, position)
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / _WEIGHTS, metadata={"format": "pt"})
    if not (target / _CONFIG).exists() or not target.samefile(source):
        shutil.copyfile(source / _CONFIG, target / _CONFIG)
