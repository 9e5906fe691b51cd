"""A bilevel problem as an equality-constrained one: z = (x, y) flattened, h = ∇_y g(x, y)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.problem import Point, Problem

Visitor = Callable[[Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class FlatProblem(Problem):
    """What the solvers of the equality-constrained problem see: F, h and combined gradients.

    Everything goes through an `Oracle`, so objectives and lower terms are streamed and no graph
    outlives a call.
    """

    oracle: Oracle
    shapes: tuple[torch.Size, torch.Size]
    on_visit: Visitor | None = None

    @staticmethod
    def of(
        oracle: Oracle, x: torch.Size, y: torch.Size, on_visit: Visitor | None = None
    ) -> FlatProblem:
        """The problem with x and y of these shapes.

        `on_visit` is told z, x, y and the weights w∘λ of each combined gradient.
        """
        split = partial(_split, (x, y))

        def rows(z: Tensor) -> Tensor:
            return torch.cat(oracle.upper_rows(*split(z)), dim=1)

        def vjp(z: Tensor, d: Tensor) -> Tensor:
            parts = oracle.products(*split(z), d.to(z).reshape(y))
            return torch.cat([part.flatten() for part in parts])

        return FlatProblem(
            objectives=lambda z: oracle.values(*split(z)),
            jacobian=rows,
            constraints=lambda z: oracle.lower_y(*split(z)).flatten(),
            constraint_vjp=vjp,
            oracle=oracle,
            shapes=(x, y),
            on_visit=on_visit,
        )

    @staticmethod
    def join(x: Tensor, y: Tensor) -> Tensor:
        """z, shape (p + q,), in y's dtype."""
        return torch.cat([x.to(y).flatten(), y.flatten()])

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x and y, as views of z."""
        return _split(self.shapes, z)

    def at(self, z: Tensor) -> Point:
        return _FlatPoint(self, z)


class _FlatPoint(Point):
    """A point whose objectives are combined before they are differentiated."""

    def __init__(self, problem: FlatProblem, z: Tensor) -> None:
        super().__init__(problem, z)
        self._flat = problem

    def combine(
        self,
        weights: Tensor | Sequence[float] | None,
        direction: Tensor | None = None,
        excess: Tensor | None = None,
    ) -> Tensor:
        total = torch.zeros_like(self.z)
        if weights is not None:
            weights = torch.as_tensor(weights, dtype=torch.float64)
            if self._flat.on_visit is not None:
                self._flat.on_visit(self.z, *self._flat.split(self.z), weights)
            parts = self._flat.oracle.upper(*self._flat.split(self.z), weights)
            total += torch.cat([part.flatten() for part in parts])
        if direction is not None:
            total += super().combine(None, direction)
        return total


def _split(shapes: tuple[torch.Size, torch.Size], z: Tensor) -> tuple[Tensor, Tensor]:
    size = shapes[0].numel()
    return z[:size].reshape(shapes[0]), z[size:].reshape(shapes[1])
