"""All M gradients from one forward and one backward pass.

Every preference loss depends on the parameters only through the response log-probabilities ℓ_i, so
``∇f^m = Σ_i W[m, i] ∇ℓ_i`` with ``W[m, i] = ∂f^m/∂ℓ_i``, which costs next to nothing. Samples do
not mix inside the network: with a unit cotangent on every ℓ_i, the signal that reaches a linear
layer at a token of sample i is that of ℓ_i alone. The layer's gradient for objective m is therefore
``Σ_i W[m, i] Σ_t δ_it x_itᵀ``, taken for all m in one product when the signal passes.

In a packed batch a prompt's tokens belong to several samples. There W is factored,
``W[m, i] = Σ_k s_k[m] c_k[i]``: for each k the signals of the prompt's responses, combined by c_k,
go through the prompt once, and s_k weighs what arrives at a layer.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paretune.gradients.bank import GradientBank
from paretune.gradients.objectives import Batch, cotangents, prompt_factors
from paretune.logprobs import PackedPass, current_stage, output_embeddings, sequence_logps
from paretune.losses import PreferenceLoss
from paretune.models import is_sharded
from paretune.models.products import product


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
            NotPerSampleError: if a layer receives something else than ``(N, L, features)``, or in a
                packed batch than all tokens. The bank then holds an incomplete sum and must be
                zeroed.
        """
        with self._capturing(len(batch["lengths"]), 1 / scale):
            if "packed" in batch:
                sums, totals = self._packed(batch, losses, scale)
            else:
                sums, totals = self._padded(batch, losses, scale)
        self._bank.add_losses(sums, totals)

    def _padded(
        self, batch: Batch, losses: Mapping[str, PreferenceLoss], scale: float
    ) -> tuple[Tensor, Tensor]:
        logps = sequence_logps(self._model, batch)
        weights, sums, totals = cotangents(logps, batch, losses)
        length = batch["input_ids"].shape[1]
        self._weigh(weights.repeat_interleave(length, 1))
        torch.autograd.backward(logps.sum() * scale)
        return sums, totals

    def _packed(
        self, batch: Batch, losses: Mapping[str, PreferenceLoss], scale: float
    ) -> tuple[Tensor, Tensor]:
        packed = batch["packed"]
        run = PackedPass(self._model, packed)
        weights, sums, totals = cotangents(run.logps, batch, losses)
        self._weigh(weights[:, packed.responses.sequence])
        run.backward_responses(scale)
        factors = prompt_factors(weights, packed.members) if packed.prompts.tokens else []
        if is_sharded(self._model):
            factors = _as_many_everywhere(factors, weights)
        for left, (combination, shares) in zip(
            range(len(factors) - 1, -1, -1), factors, strict=True
        ):
            self._weigh(shares[:, packed.prompts.sequence])
            run.backward_prompts(combination, retain_graph=left > 0)
        return sums, totals

    def _weigh(self, tokens: Tensor) -> None:
        for layer in self._layers:
            layer.cotangents = tokens

    @contextmanager
    def _capturing(self, n_sequences: int, unscale: float = 1.0) -> Iterator[None]:
        for layer in self._layers:
            layer.n_sequences, layer.unscale = n_sequences, unscale
            layer.module.forward = layer.forward  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.module.forward
                layer.cotangents = None


def _as_many_everywhere(
    factors: list[tuple[Tensor, Tensor]], weights: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """With factors that change nothing, to as many as the process has that has most.

    Each takes the processes of a sharded model through the prompts together.
    """
    most = torch.tensor(len(factors), device=weights.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    nothing = weights.new_zeros(weights.shape[1]), torch.zeros_like(weights)
    return factors + [nothing] * (int(most) - len(factors))


class _Layer:
    """One trainable linear layer during a pass."""

    def __init__(self, module: nn.Linear, weight: Tensor | None, bias: Tensor | None) -> None:
        self.module, self._weight, self._bias = module, weight, bias
        self.dtype = module.weight.dtype
        self.n_sequences = 0
        self.cotangents: Tensor | None = None
        """What each objective weighs each token of the row or rows with, ``(M, T)``, known once
        the forward pass is done."""
        self.unscale = 1.0
        """Applied to the float32 sums, not to ``W``, which would vanish in float16."""

    def forward(self, x: Tensor) -> Tensor:
        stage = current_stage()
        if stage is None:
            apart = x.dim() == 3 and x.shape[0] == self.n_sequences
            expected = f"{self.n_sequences} sequences"
        else:  # routed experts, too, that take all tokens in order
            apart = x.shape[:-1].numel() == stage.row.tokens
            expected = f"{stage.row.tokens} tokens"
        if not apart:
            raise NotPerSampleError(
                f"a layer with trainable weights receives {tuple(x.shape)} for {expected}"
            )
        if torch.is_autocast_enabled(x.device.type):
            # Inside a custom function autocast does not reach the backward products.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        self.dtype = x.dtype
        apply: Callable[..., Tensor] = _CapturedLinear.apply
        return apply(x, self.module.weight, self.module.bias, self)

    @torch.no_grad()
    def collect(self, x: Tensor, signal: Tensor) -> None:
        """Add ``Σ_t w[m, t] signal_t x_tᵀ``; x ``(..., in)``, signal ``(..., out)``, T tokens."""
        assert self.cotangents is not None
        m = self.cotangents.shape[0]
        n_in, n_out = x.shape[-1], signal.shape[-1]
        x, signal = x.reshape(-1, n_in), signal.reshape(-1, n_out)
        per_token = self.cotangents.to(signal.dtype).T[:, :, None]  # (T, M, 1)
        # The narrower side (LoRA's rank) is the one repeated M times.
        if self._weight is not None and n_out <= n_in:
            scaled = (signal[:, None] * per_token).reshape(-1, m * n_out)
            made = (scaled.T @ x).view(m, n_out, n_in)
            self._weight.add_(made, alpha=self.unscale)
        elif self._weight is not None:
            scaled = (x[:, None] * per_token).reshape(-1, m * n_in)
            made = (signal.T @ scaled).view(n_out, m, n_in)
            self._weight.add_(made.transpose(0, 1), alpha=self.unscale)
        if self._bias is not None:
            sums = self.cotangents @ signal.to(self.cotangents.dtype)
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
        return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> tuple[Tensor | None, None, None, None]:
        (signal,) = signals
        x, weight = ctx.saved_tensors
        ctx.layer.collect(x, signal)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = product(signal.flatten(0, -2), weight).view(x.shape)
        return by_x, None, None, None


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
