"""Products with weights through oneDNN, on processors where that is faster.

On the CPU torch multiplies float32 matrices with MKL, which on AMD's Zen 5 is half as fast as
oneDNN, which comes with torch (`benchmarks/units.py products`): it seems not to use the 512 bits of
AVX-512 where the processor is not Intel's. Results differ by rounding.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_ROWS = 6  # fewer are as fast with MKL
_LEAST = 8  # rows, of which numbers are rounded to multiples
_MULTIPLICATIONS = 1_500_000  # in a product that is worth the call
_PLAIN = (Tensor, nn.Parameter)


@functools.cache
def products_are_slow() -> bool:
    """Whether torch's own products are slower here than they need be, by the kind of processor.

    It is not measured: a run that is resumed must not choose otherwise.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:  # elsewhere than on Linux it is left as it is
        if "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
            return False
    except (OSError, UnicodeDecodeError):
        return False
    return _is_right()


def _is_right() -> bool:
    """Whether torch has the operator, which it does not promise, and it does what it does today."""
    x = torch.linspace(-1, 1, 6 * 16).reshape(2, 3, 16)
    weight, bias = torch.linspace(-2, 1, 5 * 16).reshape(5, 16), torch.arange(5.0)
    try:
        close = torch.allclose(_onednn(x, weight, bias), linear(x, weight, bias), atol=1e-4)
        strided = torch.allclose(_onednn(x[0].mT, x[1].mT, None), x[0].mT @ x[1], atol=1e-4)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return close and strided


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + b``; weights may be strided, such as a transposed matrix."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


def _rounded(rows: int) -> int:
    """The number of rows that a product is taken with: one of eight from a power of 2 to the next.

    oneDNN makes and keeps code for each shape, half a megabyte of it, and batches of real data have
    any length.
    """
    part = max(_LEAST, 1 << max(0, rows.bit_length() - 4))
    return -(-rows // part) * part


def _padded(x: Tensor) -> Tensor:
    """The rows of x, ``(rows, features)``, and zeros behind them."""
    x = x.reshape(-1, x.shape[-1])
    count = _rounded(len(x))
    if count == len(x):
        return x
    padded = x.new_empty(count, x.shape[1])
    padded[: len(x)] = x
    padded[len(x) :] = 0
    return padded


class _Linear(torch.autograd.Function):
    """``x Wᵀ + b``, whose backward products go the same way, any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # A frozen weight's inputs need not be kept.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        shape = *x.shape[:-1], weight.shape[0]
        return _onednn(_padded(x), weight, bias)[: x.shape[:-1].numel()].view(shape)

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> tuple[Tensor | None, ...]:
        (signal,) = signals
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        of_weight: Callable[..., Tensor] = _OfWeight.apply
        return (
            _linear(signal, weight.mT, None) if by_x else None,
            of_weight(signal, x) if by_weight else None,
            signal.flatten(0, -2).sum(0) if by_bias else None,
        )


class _OfWeight(torch.autograd.Function):
    """``δᵀ x``, the gradient by the weight."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(signal, x)
        return _onednn(_padded(signal).mT, _padded(x).mT, None)

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> tuple[Tensor | None, ...]:
        (by,) = signals
        signal, x = ctx.saved_tensors
        by_signal, by_x = ctx.needs_input_grad
        return _linear(x, by) if by_signal else None, _linear(signal, by.mT) if by_x else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not _suit(x, weight, bias):
        return linear(x, weight, bias)
    apply: Callable[..., Tensor] = _Linear.apply
    return apply(x, weight, bias)


def _suit(x: Any, weight: Any, bias: Any) -> bool:
    """Whether a product is one of plain float32 matrices on the CPU, and large."""
    return (
        type(x) in _PLAIN
        and type(weight) in _PLAIN
        and (bias is None or (type(bias) in _PLAIN and bias.dtype == torch.float32))
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.dim() > 1
        and weight.dim() == 2
        and x.shape[-1] == weight.shape[1]
        and x.numel() >= _ROWS * x.shape[-1]
        and x.numel() * weight.shape[0] >= _MULTIPLICATIONS
        and not torch.is_autocast_enabled("cpu")
    )


class _Within:
    """How many are within `fast_products`, in all threads."""

    lock = threading.Lock()
    count = 0


@contextmanager
def fast_products() -> Iterator[None]:
    """Within, linear layers multiply through oneDNN, forward and backward, where that is faster.

    Also a decorator. `torch.nn.functional.linear` is replaced meanwhile: a function mode of torch
    would be off in the backward pass, where checkpointed layers run again.
    """
    ours = nn.functional.linear in (linear, _linear)  # else somebody else's, which stays
    if not (ours and torch.backends.mkldnn.enabled and products_are_slow()):
        yield
        return
    with _Within.lock:
        _Within.count += 1
        nn.functional.linear = _linear  # type: ignore[assignment]
    try:
        yield
    finally:
        with _Within.lock:
            _Within.count -= 1
            if _Within.count == 0:
                nn.functional.linear = linear


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of two matrices, the right one a model's, as `fast_products` takes it."""
    return _linear(left, right.mT) if _Within.count else left @ right
