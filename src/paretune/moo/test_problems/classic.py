"""The problems that evolutionary algorithms are tried on, with inequalities and bounds.

Sources: E. Zitzler, K. Deb and L. Thiele, Evol. Comput. 8 (2000); K. Deb, L. Thiele, M. Laumanns
and E. Zitzler, CEC 2002; T. T. Binh and U. Korn (1997), M. Tanaka et al. (1995), A. Osyczka and
S. Kundu (1995), the last three as in K. Deb et al., IEEE Trans. Evol. Comput. 6 (2002).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from paretune.moo.problem import Problem
from paretune.moo.test_problems.reference import Array, KnownProblem


def zdt1(n: int = 30) -> KnownProblem:
    """f2 = 1 − √f1 at z2 = … = 0: convex, with an end where ∂f2 is infinite."""

    def objectives(z: Tensor) -> Tensor:
        g = 1 + 9 * z[1:].sum() / (n - 1)
        return torch.stack([z[0], g * (1 - (z[0].clamp(min=1e-30) / g).sqrt())])

    def front(count: int) -> Array:
        f1 = np.linspace(0, 1, count) ** 2
        return np.stack([f1, 1 - np.sqrt(f1)], 1)

    return _boxed(objectives, 2, n, front)


def zdt2(n: int = 30) -> KnownProblem:
    """f2 = 1 − f1² at z2 = … = 0: concave, and both ends are saddles of max p_m f_m."""

    def objectives(z: Tensor) -> Tensor:
        g = 1 + 9 * z[1:].sum() / (n - 1)
        return torch.stack([z[0], g * (1 - (z[0] / g) ** 2)])

    def front(count: int) -> Array:
        f1 = np.linspace(0, 1, count)
        return np.stack([f1, 1 - f1**2], 1)

    return _boxed(objectives, 2, n, front)


def dtlz2(n: int = 12, n_objectives: int = 3) -> KnownProblem:
    """The part of the unit sphere where no coordinate is negative."""

    def objectives(z: Tensor) -> Tensor:
        angles = z[: n_objectives - 1] * (math.pi / 2)
        height = 1 + ((z[n_objectives - 1 :] - 0.5) ** 2).sum()
        values = []
        for m in range(n_objectives):
            product = angles[: n_objectives - 1 - m].cos().prod()
            values.append(product if m == 0 else product * angles[n_objectives - 1 - m].sin())
        return height * torch.stack(values)

    def front(count: int) -> Array:
        points = np.abs(np.random.default_rng(0).normal(size=(count, n_objectives)))
        sphere: Array = points / np.linalg.norm(points, axis=1, keepdims=True)
        return sphere

    known = _boxed(objectives, n_objectives, n, front)
    return KnownProblem(
        known.problem, n_objectives, torch.full((n,), 0.4, dtype=torch.float64), front
    )


def bnh() -> KnownProblem:
    """Two circles: to stay within the first and out of the second."""

    def objectives(z: Tensor) -> Tensor:
        return torch.stack([4 * z @ z, ((z - 5) ** 2).sum()])

    def inequalities(z: Tensor) -> Tensor:
        first = ((z[0] - 5) ** 2 + z[1] ** 2) / 25 - 1
        return torch.stack([first, 1 - ((z[0] - 8) ** 2 + (z[1] + 3) ** 2) / 7.7])

    def front(count: int) -> Array:
        # z1 = z2 up to 3, then z2 = 3 on its bound.
        t = np.linspace(0, 5, count)
        z = np.stack([t, np.minimum(t, 3)], 1)
        return np.stack([4 * (z**2).sum(1), ((z - 5) ** 2).sum(1)], 1)

    bounds = _tensor(0, 0), _tensor(5, 3)
    problem = Problem(objectives, inequalities=inequalities, bounds=bounds)
    return KnownProblem(problem, 2, _tensor(1, 1), front)


def tnk() -> KnownProblem:
    """f = z, on the wavy edge of what is allowed: the front is in three pieces."""

    def inequalities(z: Tensor) -> Tensor:
        wave = 0.1 * torch.cos(16 * torch.atan2(z[0], z[1]))
        return torch.stack([1 + wave - z @ z, ((z - 0.5) ** 2).sum() - 0.5])

    def front(count: int) -> Array:
        angles = np.linspace(0, math.pi / 2, 50 * count)
        radius = np.sqrt(1 + 0.1 * np.cos(16 * angles))
        points = radius[:, None] * np.stack([np.sin(angles), np.cos(angles)], 1)
        points = points[((points - 0.5) ** 2).sum(1) <= 0.5]
        best = np.minimum.accumulate(points[:, 1])  # f1 grows along the edge
        keep = np.flatnonzero(np.r_[True, points[1:, 1] < best[:-1]])
        order = np.argsort(points[keep, 0])
        points = points[keep][order]
        lowest = np.minimum.accumulate(points[:, 1])
        kept: Array = points[np.r_[True, points[1:, 1] < lowest[:-1]]]
        return kept

    problem = Problem(lambda z: z * 1.0, inequalities=inequalities, bounds=(1e-6, math.pi))
    return KnownProblem(problem, 2, _tensor(0.6, 0.9), front)


def osy() -> KnownProblem:
    """Six variables and inequalities; f1 is below 0, and the front lies on changing edges."""

    def objectives(z: Tensor) -> Tensor:
        first = 25 * (z[0] - 2) ** 2 + (z[1] - 2) ** 2 + (z[2] - 1) ** 2
        return torch.stack([-(first + (z[3] - 4) ** 2 + (z[4] - 1) ** 2), z @ z])

    def inequalities(z: Tensor) -> Tensor:
        return -torch.stack(
            [
                (z[0] + z[1] - 2) / 2,
                (6 - z[0] - z[1]) / 6,
                (2 - z[1] + z[0]) / 2,
                (2 - z[0] + 3 * z[1]) / 2,
                (4 - (z[2] - 3) ** 2 - z[3]) / 4,
                ((z[4] - 3) ** 2 + z[5] - 4) / 4,
            ]
        )

    bounds = _tensor(0, 0, 1, 0, 1, 0), _tensor(10, 10, 5, 6, 5, 10)
    problem = Problem(objectives, inequalities=inequalities, bounds=bounds)
    return KnownProblem(problem, 2, torch.full((6,), 2.0, dtype=torch.float64))


def _boxed(objectives, size, n, front) -> KnownProblem:  # type: ignore[no-untyped-def]
    problem = Problem(objectives, bounds=(0.0, 1.0))
    return KnownProblem(problem, size, torch.full((n,), 0.5, dtype=torch.float64), front)


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
