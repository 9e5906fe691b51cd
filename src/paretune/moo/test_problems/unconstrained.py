"""Smooth problems without constraints: plain gradient steps may be taken from anywhere."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from paretune.moo.preference import das_dennis
from paretune.moo.problem import Problem
from paretune.moo.test_problems.reference import Array, KnownProblem, Weights, balance, positive


def fonseca_fleming(n: int = 3) -> KnownProblem:
    """f = 1 − exp(−‖z ∓ 1/√n‖²), z in R^n: a concave front.

    The Pareto set is the segment z = t/√n, −1 <= t <= 1, where f = 1 − exp(−(t ∓ 1)²).
    The gradients fade away from the origin (below 1e-6 of their size beyond ‖z‖ ≈ 5).
    Source: C. M. Fonseca and P. J. Fleming, Evol. Comput. 3 (1995).
    """
    centre = 1 / math.sqrt(n)

    def objectives(z: Tensor) -> Tensor:
        squares = torch.stack([((z - centre) ** 2).sum(), ((z + centre) ** 2).sum()])
        return -torch.expm1(-squares)

    def curve(t: Array | float) -> Array:
        squares = np.stack([(np.asarray(t) - 1) ** 2, (np.asarray(t) + 1) ** 2], -1)
        return np.asarray(-np.expm1(-squares))

    return KnownProblem(
        problem=Problem(objectives),
        n_objectives=2,
        x0=torch.linspace(-0.8, 0.6, n, dtype=torch.float64),
        front=lambda count: curve(np.linspace(-1, 1, count)),
        solution=lambda p: np.full(n, centre * balance(curve, p, -1.0, 1.0)),
    )


def convex_pair(n: int = 3) -> KnownProblem:
    """f = ‖z ∓ 1/√n‖², z in R^n: a convex front, √f1 + √f2 = 2.

    On it z = t/√n and f = (t ∓ 1)². Its weighted-Chebyshev point has
    t = (√p1 − √p2) / (√p1 + √p2), linear weighting ends at t = p1 − p2.
    """
    centre = 1 / math.sqrt(n)

    def front(count: int) -> Array:
        t = np.linspace(-1, 1, count)
        return np.stack([(t - 1) ** 2, (t + 1) ** 2], -1)

    def solution(p: Weights) -> Array:
        first, second = map(math.sqrt, positive(p, 2))
        return np.full(n, centre * (first - second) / (first + second))

    return KnownProblem(
        problem=Problem([lambda z: ((z - centre) ** 2).sum(), lambda z: ((z + centre) ** 2).sum()]),
        n_objectives=2,
        x0=torch.linspace(-1.5, 2.0, n, dtype=torch.float64),
        front=front,
        solution=solution,
    )


def zdt2_smooth(n: int = 3) -> KnownProblem:
    """f1 = s + g, f2 = 1 − s² + g with s = sigmoid(z1) and g = Σ_{i>1} z_i²: a concave front.

    The front of ZDT2, f2 = 1 − f1², 0 < f1 < 1, without its bounds on z.
    Source of the front: E. Zitzler, K. Deb and L. Thiele, Evol. Comput. 8 (2000).
    """

    def objectives(z: Tensor) -> Tensor:
        s, g = torch.sigmoid(z[0]), (z[1:] ** 2).sum()
        return torch.stack([s + g, 1 - s**2 + g])

    def front(count: int) -> Array:
        s = np.linspace(0, 1, count)
        return np.stack([s, 1 - s**2], -1)

    def solution(p: Weights) -> Array:
        first, second = positive(p, 2)
        ratio = first / second  # s ratio = 1 − s²
        s = 2 / (ratio + math.sqrt(ratio**2 + 4))
        return np.array([_logit(s)] + [0.0] * (n - 1))

    return KnownProblem(
        problem=Problem(objectives),
        n_objectives=2,
        x0=torch.linspace(-1.0, 1.0, n, dtype=torch.float64),
        front=front,
        solution=solution,
    )


def sphere3(n: int = 4) -> KnownProblem:
    """Three objectives whose front is the positive part of the unit sphere: concave.

    f = (1 + g) (cos a cos b, cos a sin b, sin a) with a = π/2 sigmoid(z1), b = π/2 sigmoid(z2),
    g = Σ_{i>2} z_i²: the front of DTLZ2 without its bounds. At the weighted-Chebyshev point f is
    the unit vector along 1 / p.
    Source of the front: K. Deb, L. Thiele, M. Laumanns and E. Zitzler, CEC (2002).
    """

    def objectives(z: Tensor) -> Tensor:
        a, b = math.pi / 2 * torch.sigmoid(z[:2])
        shape = torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()])
        return (1 + (z[2:] ** 2).sum()) * shape

    def front(count: int) -> Array:
        divisions = max(1, round(math.sqrt(2 * count) - 1.5))
        points = np.array(das_dennis(3, divisions))
        return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True))

    def solution(p: Weights) -> Array:
        x, y, height = (1 / weight for weight in positive(p, 3))
        a, b = math.atan2(height, math.hypot(x, y)), math.atan2(y, x)
        return np.array([_logit(2 * a / math.pi), _logit(2 * b / math.pi)] + [0.0] * (n - 2))

    return KnownProblem(
        problem=Problem(objectives),
        n_objectives=3,
        x0=torch.linspace(-1.0, 1.0, n, dtype=torch.float64),
        front=front,
        solution=solution,
    )


def _logit(s: float) -> float:
    return math.log(s / (1 - s))
