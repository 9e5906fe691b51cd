"""Gates of a preference-conditioned adapter: which factor each block gets at which position.

A conditioned layer is ``W x + s B (c ∘ (A x))``, whose rank dimension is cut into M blocks; ``c``
is a fixed affine function of a *position* q, the same on all of a block. Positions are barycentric:
q has one coordinate an objective, and they sum to one. In training q is the preference p itself;
afterwards a calibration (`paretune.moo.calibration`) says which q a wanted p is best served at,
which may lie outside the simplex.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from paretune.errors import InputError

Basis = Literal["centred", "objectives"]
Inner = Literal["pwg", "clamp"]
"""How objectives are weighed at a preference in training: by p itself, or by CLAMP."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gate:
    """The factors of the M blocks at a position.

    Attributes:
        n_objectives: M, at least 2.
        basis: ``"objectives"``: block m gets q_m (PaLoRA's convex hull). ``"centred"``: the first
            block gets 1, and the M - 1 others the coordinates of q in a regular simplex around the
            origin (M = 2: q_1 - q_2), with corners at a distance of sqrt(M - 1). Both span the
            same adapters; in the centred basis a gradient step on one block does not leak into the
            others, since over the preferences of a training (`spread_preferences`) the coordinates
            have mean 0 and no covariance; each has variance 1/3.

    >>> Gate(2).factors([0.8, 0.2]).round(6).tolist()
    [1.0, 0.6]
    >>> Gate(2, "objectives").factors([0.8, 0.2]).tolist()
    [0.8, 0.2]
    """

    n_objectives: int
    basis: Basis = "centred"

    def __post_init__(self) -> None:
        if self.n_objectives < 2:
            raise InputError(
                f"A conditioned adapter needs at least 2 objectives, not {self.n_objectives}."
            )
        if self.basis not in get_args(Basis):
            raise InputError(f"basis must be centred or objectives, not {self.basis!r}.")

    def factors(self, positions: object) -> Array:
        """The blocks' factors, shape (..., M), at positions of shape (..., M).

        Raises:
            InputError: positions of another number of objectives, or that do not sum to one.
        """
        q = checked_positions(positions, self.n_objectives)
        if self.basis == "objectives":
            return q
        ones = np.ones((*q.shape[:-1], 1))
        m = self.n_objectives
        return np.concatenate([ones, math.sqrt(m - 1) * (q @ corners(m))], axis=-1)


def checked_positions(positions: object, n_objectives: int) -> Array:
    """Positions as float64, shape (..., M).

    Raises:
        InputError: another shape, a value that is not finite, or coordinates that do not sum to 1.
    """
    q = np.asarray(positions, dtype=np.float64)
    if q.ndim == 0 or q.shape[-1] != n_objectives:
        raise InputError(
            f"A position has one coordinate for each of {n_objectives} objectives; got shape "
            f"{q.shape}."
        )
    if not (np.isfinite(q).all() and np.allclose(q.sum(-1), 1, rtol=0, atol=1e-6)):
        raise InputError("The coordinates of a position must be finite and sum to 1.")
    return q


def corners(n_objectives: int) -> Array:
    """The corners of a regular simplex around the origin, unit vectors, shape (M, M - 1).

    >>> corners(2).tolist()
    [[1.0], [-1.0]]
    """
    m = n_objectives
    helmert = np.zeros((m - 1, m))
    for k in range(1, m):
        helmert[k - 1, :k], helmert[k - 1, k] = 1.0, -k
        helmert[k - 1] /= math.sqrt(k * (k + 1))
    return helmert.T * math.sqrt(m / (m - 1))


def spread_preferences(start: int, count: int, n_objectives: int, seed: int = 0) -> Array:
    """Members `start` to `start + count` of a sequence that fills the simplex evenly, (count, M).

    Dirichlet with all parameters 2 / M, which for two objectives is uniform. For more it is denser
    towards the corners than a uniform one, whose points crowd in the middle: for any M the mean of
    Σ_m p_m^2 is (1 + 2 / M) / 3. By breaking a stick at quantiles of M - 1 numbers, which are those
    of the R-sequence (Roberts, 2018), an additive recurrence with the golden ratio as its
    one-dimensional case. Any run of members is evenly spread, and each is known from its number
    alone.

    >>> spread_preferences(0, 2, 2).round(3).tolist()
    [[0.118, 0.882], [0.736, 0.264]]
    """
    dimensions = n_objectives - 1
    root = 1.5  # of x^(d + 1) = x + 1
    for _ in range(60):
        root = (1 + root) ** (1 / (dimensions + 1))
    steps = np.array([root ** -(k + 1) for k in range(dimensions)])
    offset = 0.5 if seed == 0 else np.random.default_rng(seed).random(dimensions)
    numbers = np.arange(start + 1, start + count + 1, dtype=np.float64)[:, None]
    uniform = (offset + numbers * steps) % 1.0
    left, weights, alpha = np.ones(count), [], 2 / n_objectives
    for k in range(dimensions):
        part = left * beta_quantile(uniform[:, k], alpha, (dimensions - k) * alpha)
        weights.append(part)
        left = left - part
    return np.stack([*weights, left], axis=1)


def beta_quantile(probabilities: Array, a: float, b: float) -> Array:
    """Where the distribution function of Beta(a, b) has these values, by numbers, to about 1e-4."""
    if a == b == 1:
        return probabilities
    # Of the logit t of x the density is x^a (1 - x)^b: smooth, and gone where |t| is large.
    t = np.linspace(-40 / a, 40 / b, 8001)
    density = np.exp(-a * np.logaddexp(0, -t) - b * np.logaddexp(0, t))
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return np.asarray(1 / (1 + np.exp(-np.interp(probabilities, below / below[-1], t))))
