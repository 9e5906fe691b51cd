"""DTLZ with equality constraints: fronts that are closed curves."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.problem import Problem
from paretune.moo.test_problems.reference import Array, KnownProblem, Weights, lowest, positive


def eq_dtlz(
    number: Literal[1, 2, 3, 4] = 2, constraints: Literal[1, 2] = 1, inverted: bool = False
) -> KnownProblem:
    """Eq1DTLZ, Eq2DTLZ and their inverted forms IDTLZ1, IDTLZ2, whose feasible fronts are curves.

    z = (p, d) in [0, 1]^n, p the M − 1 position variables, d the 5 (DTLZ1) or 10 distance
    variables. Eq1, M = 3: Σ (p_i − 1/2)² = 0.4². Eq2, M = 4: p lies on two spheres of radius 1/2,
    with centres (1/2, 1/2, 1/2) and (1/2, 1/2, 1). Both leave a circle in p; the front is its image
    at d = 1/2, and all its points are Pareto optimal. Inverted: (1 + g) (or (1 + g)/2) minus f;
    public sources disagree on IDTLZ2, this is the form that stays positive.

    Along a closed curve max_m p_m f_m has several valleys. `solution` is the lowest one, found by
    a search along the circle; judge a local solver by its distance to the front instead. DTLZ1 and
    DTLZ3 have a great many local minima in d besides, DTLZ4's objectives are nearly constant.

    Source: O. Cuate et al., Swarm Evol. Comput. 52 (2020) 100619; K. Deb et al., CEC (2002).
    """
    if number not in (1, 2, 3, 4) or constraints not in (1, 2) or (inverted and number > 2):
        raise InputError("eq_dtlz has number 1 to 4 (inverted: 1 or 2) and constraints 1 or 2.")
    size = constraints + 2
    n_distance = 5 if number == 1 else 10

    def objectives(z: Tensor) -> Tensor:
        place, offset = z[: size - 1], z[size - 1 :] - 0.5
        g = (offset**2).sum()
        if number in (1, 3):
            g = 100 * (n_distance + g - torch.cos(20 * math.pi * offset).sum())
        scale, shape = (0.5, _simplex) if number == 1 else (1.0, _ball)
        if number == 4:
            place = place**100
        values = shape(place)
        return scale * (1 + g) * (1 - values if inverted else values)

    def equalities(z: Tensor) -> Tensor:
        offset = z[: size - 1] - 0.5
        if constraints == 1:
            return (offset**2).sum().reshape(1) - 0.4**2
        shifted = offset - torch.tensor([0.0, 0.0, 0.5]).to(z)
        return torch.stack([(offset**2).sum(), (shifted**2).sum()]) - 0.5**2

    def circle(t: Array) -> Array:
        radius, rest = (0.4, []) if constraints == 1 else (math.sqrt(0.5**2 - 0.25**2), [0.75])
        rest = rest + [0.5] * n_distance
        around = 0.5 + radius * np.stack([np.cos(t), np.sin(t)], -1)
        return np.concatenate([around, np.broadcast_to(rest, (len(t), len(rest)))], -1)

    def curve(t: Array) -> Array:
        return torch.vmap(objectives)(torch.tensor(circle(t))).numpy()

    def solution(p: Weights) -> Array:
        weights = np.array(positive(p, size))
        t = lowest(lambda grid: (curve(grid) * weights).max(-1), 0.0, 2 * math.pi)
        return np.asarray(circle(np.array([t]))[0])

    return KnownProblem(
        problem=Problem(objectives, constraints=equalities, bounds=(0.0, 1.0)),
        n_objectives=size,
        x0=torch.linspace(0.35, 0.6, size - 1 + n_distance, dtype=torch.float64),
        front=lambda count: curve(np.linspace(0, 2 * math.pi, count, endpoint=False)),
        solution=solution,
    )


def _ball(place: Tensor) -> Tensor:
    """DTLZ2's point of the unit sphere for M − 1 positions in [0, 1]."""
    angle = place * math.pi / 2
    return _products(angle.cos(), angle.sin())


def _simplex(place: Tensor) -> Tensor:
    """DTLZ1's point of the unit simplex for M − 1 positions in [0, 1]."""
    return _products(place, 1 - place)


def _products(head: Tensor, tail: Tensor) -> Tensor:
    """[h1···h_{M−1}, h1···h_{M−2} t_{M−1}, ..., h1 t2, t1]."""
    one = head.new_ones(1)
    running = torch.cat([one, head.cumprod(0)]).flip(0)
    return running * torch.cat([one, tail.flip(0)])
