"""Derivatives through a lower level that is solved by D gradient steps, without keeping a graph.

y^{d+1} = y^d − β ∇_y g(x, y^d). Reverse mode through these steps needs, at each y^d, one product of
a vector with ∇²g: exactly what the `Oracle` gives. So the path is remembered (D + 1 vectors) in
place of D graphs, and finite differences and fused attention work too.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paretune.moo.bilevel.oracle import Oracle


def inner_steps(oracle: Oracle, x: Tensor, y: Tensor, count: int, beta: float) -> list[Tensor]:
    """y^0 = y, …, y^D, by `count` gradient steps of length beta: as many gradients."""
    path = [y]
    for _ in range(count):
        path.append(path[-1] - beta * oracle.lower_y(x, path[-1]))
    return path


def unrolled_gradient(
    oracle: Oracle, x: Tensor, path: Sequence[Tensor], gx: Tensor, gy: Tensor, beta: float
) -> Tensor:
    """d/dx f(x, y^D(x)) in the shape of x, from ∇_x f and ∇_y f at (x, y^D), y^0 held fixed.

    Costs one product for each of the D steps.
    """
    total, adjoint = gx, gy
    for y in reversed(path[:-1]):
        across, curved = oracle.products(x, y, adjoint)
        total, adjoint = total - beta * across, adjoint - beta * curved
    return total
