"""Multi-objective problems on torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paretune.errors import InputError

Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """Objectives to be minimised together.

    Attributes:
        objectives: z -> F(z), shape (M,), or a sequence of M functions z -> f_m(z), each a scalar;
            written in torch, differentiable. z has the shape of the start point.
        jacobian: z -> ∇F(z), shape (M, *z.shape), where it is known; otherwise automatic.
    """

    objectives: Objective | Sequence[Objective]
    jacobian: Objective | None = None

    def evaluate(self, z: Tensor) -> Tensor:
        """F(z), shape (M,). Raises InputError when the objectives return another shape."""
        if callable(self.objectives):
            values = self.objectives(z)
            if not isinstance(values, Tensor) or values.dim() != 1 or len(values) == 0:
                found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise InputError(f"objectives(z) must be a tensor of shape (M,), got {found}.")
            return values
        if len(self.objectives) == 0:
            raise InputError("A problem needs at least one objective.")
        columns = []
        for m, objective in enumerate(self.objectives):
            value = objective(z)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise InputError(f"objectives[{m}](z) must be a tensor with one number.")
            columns.append(value.reshape(()))
        return torch.stack(columns)

    def linearise(self, z: Tensor, wanted: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """F(z), shape (M,), and the flattened gradients, shape (M, z.numel()).

        The gradients of objectives that are not wanted are zero, and not computed. Raises
        InputError for wrong shapes, for another number of objectives than len(wanted), and for
        objectives that do not depend on z through differentiable operations.
        """
        if self.jacobian is not None:
            with torch.no_grad():
                values, jacobian = self.evaluate(z), self.jacobian(z)
            _check_count(values, wanted)
            if jacobian.shape != (len(values), *z.shape):
                raise InputError(
                    f"jacobian(z) must have shape {(len(values), *z.shape)}, "
                    f"got {tuple(jacobian.shape)}."
                )
            return values, jacobian.flatten(1) * torch.tensor(wanted, device=z.device)[:, None]
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            values = self.evaluate(z)
        _check_count(values, wanted)
        if not values.requires_grad:
            raise InputError(
                "The objectives do not depend on z through torch operations, so they have no "
                "gradient; give Problem(..., jacobian=...)."
            )
        rows = torch.zeros(len(values), z.numel(), dtype=z.dtype, device=z.device)
        for m in range(len(values)):
            if wanted[m]:
                (gradient,) = torch.autograd.grad(
                    values[m], z, retain_graph=True, materialize_grads=True
                )
                rows[m] = gradient.flatten()
        return values.detach(), rows


def _check_count(values: Tensor, wanted: Sequence[bool]) -> None:
    if len(values) != len(wanted):
        raise InputError(
            f"The problem has {len(values)} objectives, the preference {len(wanted)} weights."
        )
