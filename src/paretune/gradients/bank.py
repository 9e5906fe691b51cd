"""Where the M gradients of a step are kept, from first micro-batch to combined direction."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from paretune.errors import InputError

_CHUNK = 65_536  # columns per float32 product; their sums are taken in float64


class GradientBank:
    """M gradients in float32, accumulated over micro-batches and processes.

    What is accumulated are weighted *sums* over pairs; `finish` divides by the total weights,
    so micro-batches and processes with unequal numbers of pairs are averaged correctly.

    Args:
        parameters: The d trainable numbers, all on one device. Memory: 4·M·d bytes.
        n_objectives: M.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], n_objectives: int) -> None:
        device = device_of(parameters)
        self.parameters = list(parameters)
        self.n_objectives = n_objectives
        size = n_objectives * sum(parameter.numel() for parameter in parameters)
        self._buffer = torch.zeros(size, dtype=torch.float32, device=device)
        self.blocks: list[Tensor] = []
        """Per parameter, its M gradients: ``(M, *parameter.shape)``, views of one buffer."""
        start = 0
        for parameter in parameters:
            end = start + n_objectives * parameter.numel()
            self.blocks.append(self._buffer[start:end].view(n_objectives, *parameter.shape))
            start = end
        self.losses = torch.zeros(n_objectives, dtype=torch.float64)
        """Sums of weighted losses; mean losses after `finish`."""
        self.totals = torch.zeros(n_objectives, dtype=torch.float64)
        """Sums of the pairs' weights."""

    def first(self, count: int) -> "GradientBank":
        """A bank of the first so many gradients, in the memory of this one: use one of the two."""
        part = GradientBank.__new__(GradientBank)
        part.parameters, part.n_objectives = self.parameters, count
        part._buffer, part.blocks = self._buffer, [block[:count] for block in self.blocks]
        part.losses, part.totals = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
        return part

    def zero(self) -> None:
        """Start a new step."""
        self._buffer.zero_()
        self.losses.zero_()
        self.totals.zero_()

    def hold(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """A copy of the sums so far, for `restore`; None before the first micro-batch."""
        if not bool(self.totals.any()):
            return None
        return self._buffer.clone(), self.losses.clone(), self.totals.clone()

    def restore(self, held: tuple[Tensor, Tensor, Tensor] | None) -> None:
        """Put back what was held."""
        self.zero()
        if held is not None:
            self._buffer.copy_(held[0])
            self.losses, self.totals = held[1:]

    def add_losses(self, sums: Tensor, totals: Tensor) -> None:
        """Add a micro-batch's weighted loss sums and total weights, each ``(M,)``."""
        self.losses += sums.detach().to("cpu", torch.float64)
        self.totals += totals.detach().to("cpu", torch.float64)

    def add_gradient(self, objective: int, gradients: Sequence[Tensor | None]) -> None:
        """Add one objective's gradient, a tensor (or None for zero) per parameter."""
        for block, gradient in zip(self.blocks, gradients, strict=True):
            if gradient is not None:
                block[objective] += gradient.to(block.dtype)

    def finish(self, reduce_sum: Callable[[Tensor], Tensor] | None = None) -> None:
        """Turn sums into means, over all processes where ``reduce_sum`` adds over them.

        An objective without any pair, whose total is 0, has loss and gradient 0.
        """
        if reduce_sum is not None:
            self._buffer.copy_(reduce_sum(self._buffer))
            scalars = torch.stack([self.losses, self.totals]).float().to(self._buffer.device)
            self.losses, self.totals = reduce_sum(scalars).cpu().double()
        totals = torch.where(self.totals == 0, 1.0, self.totals)
        self.losses /= totals
        for index, block in enumerate(self.blocks):
            shape = (-1, *(1,) * (block.dim() - 1))
            self.blocks[index].div_(totals.to(block.device, block.dtype).view(shape))

    def gramian(self) -> Tensor:
        """``G Gᵀ``, ``(M, M)`` float64 on the CPU: float32 products summed in float64.

        A plain float32 product is off by 7e-5 at four million columns and can be indefinite; this
        one is off by about 2e-7.
        """
        # MPS has no float64.
        device = self._buffer.device if self._buffer.device.type != "mps" else "cpu"
        total = torch.zeros(
            self.n_objectives, self.n_objectives, dtype=torch.float64, device=device
        )
        for block in self.blocks:
            add_products(block, total)
        return total.cpu()

    def combine(self, weights: Tensor, scale: float = 1.0) -> None:
        """Write ``scale · Σ_m weights_m g^m`` to the parameters' ``.grad``."""
        for parameter, block in zip(self.parameters, self.blocks, strict=True):
            direction = torch.tensordot(
                (weights * scale).to(block.device, block.dtype), block, dims=1
            )
            parameter.grad = direction.to(parameter.dtype)


def device_of(parameters: Sequence[nn.Parameter]) -> torch.device:
    """The one device of all parameters. Raises InputError if there is not one."""
    devices = {parameter.device for parameter in parameters}
    if len(devices) != 1:
        found = ", ".join(sorted(map(str, devices))) or "none"
        raise InputError(f"All trainable parameters must be on one device; found: {found}.")
    return devices.pop()


def add_products(block: Tensor, total: Tensor) -> None:
    """Add the products of M gradients ``(M, ...)`` with each other to ``(M, M)`` float64."""
    for chunk in block.view(len(block), -1).split(_CHUNK, dim=1):
        total += (chunk @ chunk.T).to(total.device, total.dtype)
