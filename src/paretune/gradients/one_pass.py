"""All M gradients from one forward and one backward pass.

Every preference loss depends on the parameters only through the response log-probabilities ℓ_i, so
``∇f^m = Σ_i W[m, i] ∇ℓ_i`` with ``W[m, i] = ∂f^m/∂ℓ_i``, which costs next to nothing. Samples do
not mix inside the network: with a unit cotangent on every ℓ_i, the signal that reaches a linear
layer at sample i is that of ℓ_i alone. The layer's gradient for objective m is therefore
``Σ_i W[m, i] Σ_t δ_it x_itᵀ``, taken for all m in one product when the signal passes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from paretune.gradients.bank import GradientBank
from paretune.gradients.objectives import Batch, loss_sums
from paretune.logprobs import output_embeddings, sequence_logps
from paretune.losses import PreferenceLoss


class NotPerSampleError(RuntimeError):
    """A layer's input does not keep the samples apart, so one pass cannot tell their gradients."""


class OnePass:
    """Collects the M gradients at the trainable linear layers of a model.

    Args:
        model: Its trainable parameters must all belong to ``nn.Linear`` layers; see
            `unsupported_reason`.
        bank: Receives the gradients; its parameters are the model's trainable ones.
    """

    def __init__(self, model: nn.Module, bank: GradientBank) -> None:
        self._model, self._bank = model, bank
        blocks = {id(p): block for p, block in zip(bank.parameters, bank.blocks, strict=True)}
        self._layers = [
            _Layer(module, blocks.get(id(module.weight)), blocks.get(id(module.bias)))
            for module in model.modules()
            if isinstance(module, nn.Linear) and id(module.weight) in blocks
        ]

    @property
    def dtype(self) -> torch.dtype:
        """In which the layers last computed."""
        return self._layers[0].dtype

    def accumulate(
        self, batch: Batch, losses: Mapping[str, PreferenceLoss], scale: float = 1.0
    ) -> None:
        """Add the batch's M gradients and losses to the bank.

        Args:
            scale: Loss scale of mixed precision, on the backward signal and taken off the result.

        Raises:
            NotPerSampleError: if a layer receives something else than ``(N, L, features)``. The
                bank then holds an incomplete sum and must be zeroed.
        """
        n_sequences = batch["input_ids"].shape[0]
        with self._capturing(n_sequences):
            logps = sequence_logps(self._model, batch)
            leaf = logps.detach().requires_grad_()
            sums, totals = loss_sums(leaf, batch, losses)
            rows = [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in sums]
            cotangents = torch.stack(rows)
            for layer in self._layers:
                layer.cotangents, layer.unscale = cotangents, 1 / scale
            torch.autograd.backward(logps.sum() * scale)
        self._bank.add_losses(sums, totals)

    @contextmanager
    def _capturing(self, n_sequences: int) -> Iterator[None]:
        for layer in self._layers:
            layer.n_sequences = n_sequences
            layer.module.forward = layer.forward  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.module.forward
                layer.cotangents = None


class _Layer:
    """One trainable linear layer during a pass."""

    def __init__(self, module: nn.Linear, weight: Tensor | None, bias: Tensor | None) -> None:
        self.module, self._weight, self._bias = module, weight, bias
        self.dtype = module.weight.dtype
        self.n_sequences = 0
        self.cotangents: Tensor | None = None
        """``W``, ``(M, N)``, known once the forward pass is done."""
        self.unscale = 1.0
        """Applied to the float32 sums, not to ``W``, which would vanish in float16."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3 or x.shape[0] != self.n_sequences:
            raise NotPerSampleError(
                f"a layer with trainable weights receives {tuple(x.shape)} for "
                f"{self.n_sequences} sequences"
            )
        if torch.is_autocast_enabled(x.device.type):
            # Inside a custom function autocast does not reach the backward products.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        self.dtype = x.dtype
        apply: Callable[..., Tensor] = _CapturedLinear.apply
        return apply(x, self.module.weight, self.module.bias, self)

    @torch.no_grad()
    def collect(self, x: Tensor, signal: Tensor) -> None:
        """Add ``Σ_i W[m, i] Σ_t signal_it x_itᵀ``; x ``(N, L, in)``, signal ``(N, L, out)``."""
        assert self.cotangents is not None
        m = self.cotangents.shape[0]
        n_in, n_out = x.shape[-1], signal.shape[-1]
        per_sample = self.cotangents.to(signal.dtype).T[:, None, :, None]  # (N, 1, M, 1)
        # The narrower side (LoRA's rank) is the one repeated M times.
        if self._weight is not None and n_out <= n_in:
            scaled = (signal[:, :, None] * per_sample).reshape(-1, m * n_out)
            product = (scaled.T @ x.reshape(-1, n_in)).view(m, n_out, n_in)
            self._weight.add_(product, alpha=self.unscale)
        elif self._weight is not None:
            scaled = (x[:, :, None] * per_sample).reshape(-1, m * n_in)
            product = (signal.reshape(-1, n_out).T @ scaled).view(n_out, m, n_in)
            self._weight.add_(product.transpose(0, 1), alpha=self.unscale)
        if self._bias is not None:
            sums = self.cotangents @ signal.sum(1, dtype=self.cotangents.dtype)
            self._bias.add_(sums, alpha=self.unscale)


class _CapturedLinear(torch.autograd.Function):
    """``x Wᵀ + b`` whose backward hands input and signal to the layer, not to ``.grad``.

    The input is kept through ``save_for_backward``, so activation checkpointing drops it and
    recomputes it like any other activation.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: _Layer) -> Tensor:
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        return linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> tuple[Tensor | None, None, None, None]:
        (signal,) = signals
        x, weight = ctx.saved_tensors
        ctx.layer.collect(x, signal)
        return (signal @ weight if ctx.needs_input_grad[0] else None), None, None, None


def unsupported_reason(model: nn.Module) -> str | None:
    """Why `OnePass` is not exact for a model's trainable parameters; None if it is.

    It needs every trainable parameter to be the weight or bias of an ``nn.Linear`` that is called
    as a module, outside the output embeddings (LoRA's A and B are; DoRA's magnitudes, embeddings
    and norms are not).
    """
    modules = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    head = {id(parameter) for parameter in output_embeddings(model).parameters()}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner, _, kind = name.rpartition(".")
        if owner not in modules or kind not in ("weight", "bias"):
            return f"{name} is not the weight of a linear layer"
        if not modules[owner].weight.requires_grad:
            return f"{name} is trained without its layer's weight"
        if id(parameter) in head:
            return f"{name} belongs to the output embeddings"
    if getattr(model, "peft_config", None) is None:
        return "the model has no adapters, and M gradients of all weights cost too much memory"
    return None
