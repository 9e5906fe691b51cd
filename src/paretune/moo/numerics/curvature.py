"""Where a function curves down: the second-order test of a stationary point."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from paretune.moo.problem import Problem

_STEPS = 4  # of Lanczos, a gradient each
_NEGATIVE = 1e-4  # of the largest curvature met: below this it is taken for rounding
_HELD = 1e-6  # a slope at a bound, in parts of the curvature times the size of z


def most_negative_curvature(
    problem: Problem, z: Tensor, gradient: Tensor, gradient_at: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """A direction of negative curvature at z, of length 1 in z's shape; None if none was found.

    Lanczos' method on differences of gradients, from a random direction. Coordinates that a bound
    holds by a slope of their own stay where they are; the others at a bound are first moved
    inwards a little, so that differences can be taken to both sides.

    Args:
        problem: whose bounds hold.
        z: a stationary point.
        gradient: of the function at z, flattened.
        gradient_at: the function's gradient elsewhere, flattened.
    """
    size, eps = max(1.0, float(z.norm())), torch.finfo(z.dtype).eps
    near, far = size * eps**0.25, size * eps**0.5
    base, free = z.flatten(), torch.ones(z.numel(), dtype=torch.bool, device=z.device)
    start = torch.randn(z.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = start.to(z)
    if problem.bounds is not None:
        ahead, behind = (problem.project(z + sign * near).flatten() - base for sign in (1.0, -1.0))
        low, high = behind > -near / 2, ahead < near / 2
        held = (low | high) & (gradient.abs() > _HELD * size)
        free = ~(held | (low & high))
        base = base + torch.where(low & free, near, 0.0) - torch.where(high & free, near, 0.0)
    if not bool(free.any()):
        return None
    here = gradient if torch.equal(base, z.flatten()) else gradient_at(base.reshape(z.shape))
    basis: list[Tensor] = []
    images: list[Tensor] = []
    direction = direction * free
    for _ in range(min(_STEPS, int(free.sum()))):
        for _ in range(2):  # twice is enough against rounding
            for other in basis:
                direction = direction - (direction @ other) * other
        length = float(torch.linalg.vector_norm(direction))
        if not math.isfinite(length) or length <= 1e-12:
            break
        unit = direction / length
        reached = gradient_at((base + far * unit).reshape(z.shape))
        image = (reached - here) / far * free
        if not bool(image.isfinite().all()):
            return None
        basis.append(unit)
        images.append(image)
        direction = image
    if not basis:
        return None
    rows, products = torch.stack(basis), torch.stack(images)
    small = (rows @ products.T).double().cpu()
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    if not float(values[0]) < -_NEGATIVE * float(values.abs().max()):
        return None
    bend: Tensor = vectors[:, 0].to(rows) @ rows
    return bend.reshape(z.shape)
