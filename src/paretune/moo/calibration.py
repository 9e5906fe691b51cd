"""What a preference should mean on a measured front: which position of a gate serves it.

A conditioned adapter, or a soup of adapters, has a loss vector F(q) at every position q (see
`paretune.moo.gates`). F is measured at a few positions and interpolated; the calibration then maps
a preference p to a position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from paretune.errors import InputError
from paretune.moo.gates import checked_positions
from paretune.moo.preference import das_dennis

Array = NDArray[np.float64]
Meaning = Literal["even", "chebyshev", "none"]

_WORTH = 0.05
"""Of its range within the simplex, how much an end's own loss must fall by a step beyond it."""
_GRID = 2_000  # intervals of a path on which it is searched; of a triangle, as many points in all


@dataclass(frozen=True)
class Calibration:
    """Measured losses along the positions of a gate, and what a preference means on them.

    Attributes:
        positions: barycentric, shape (K, M); M = 2: in order along the path.
        losses: shape (K, M).
        meaning: ``"even"``: equal steps of p are equal steps along the front in losses divided by
            their ranges (M = 2: arc length; M > 2: normal boundary intersection, Das and Dennis
            1998). ``"chebyshev"``: the position that minimises max_m p_m u_m, u the losses in
            their ranges. ``"none"``: the position is p itself.

    Raises:
        InputError: fewer than two positions, losses that are not finite, or an unknown meaning.
    """

    positions: Array
    losses: Array
    meaning: Meaning = "even"

    def __post_init__(self) -> None:
        losses = np.asarray(self.losses, dtype=np.float64)
        object.__setattr__(self, "losses", losses)
        if losses.ndim != 2 or len(losses) < 2:
            raise InputError("A calibration needs the losses at two positions or more.")
        q = checked_positions(self.positions, losses.shape[1])
        object.__setattr__(self, "positions", q)
        if q.shape != losses.shape:
            raise InputError(f"There are {len(q)} positions and {len(losses)} rows of losses.")
        if not np.isfinite(losses).all():
            raise InputError("A calibration needs finite losses at every position.")
        if self.meaning not in get_args(Meaning):
            raise InputError(f"A calibration is even, chebyshev or none, not {self.meaning!r}.")
        if self.n_objectives == 2 and not (np.diff(q[:, 0]) > 0).all():
            raise InputError("The positions of a path must rise in the first objective.")

    @property
    def n_objectives(self) -> int:
        return int(self.losses.shape[1])

    def losses_at(self, positions: object) -> Array:
        """Interpolated losses, shape (..., M), at positions within those measured.

        M = 2: the monotone cubic of each loss along the path (Fritsch and Carlson, 1980). M > 2: a
        quadratic in the position, fitted by least squares.
        """
        q = checked_positions(positions, self.n_objectives)
        if self.n_objectives == 2:
            t = np.clip(q[..., 0], self.positions[0, 0], self.positions[-1, 0])
            columns = [pchip(self.positions[:, 0], f, t) for f in self.losses.T]
            return np.stack(columns, axis=-1)
        coefficients, *_ = np.linalg.lstsq(_quadratic(self.positions), self.losses, rcond=None)
        return np.asarray(_quadratic(q) @ coefficients)

    def position(self, preference: Sequence[float]) -> tuple[float, ...]:
        """The position for a preference.

        Raises:
            InputError: weights that are negative, not finite or do not sum to one.
        """
        p = checked_positions(preference, self.n_objectives)
        if (p < 0).any():
            raise InputError("The weights of a preference must be at least 0.")
        if self.meaning == "none":
            return tuple(map(float, p))
        candidates, scaled = self._candidates()
        if self.meaning == "chebyshev":
            return _row(candidates, int(np.argmin((p * scaled).max(-1))))
        if self.n_objectives == 2:
            lengths = np.concatenate(
                [[0.0], np.cumsum(np.linalg.norm(np.diff(scaled, axis=0), axis=1))]
            )
            # Along the path the first objective's position rises, as its weight does.
            t = np.interp(p[0] * lengths[-1], lengths, candidates[:, 0])
            return float(t), float(1 - t)
        # Normal boundary intersection: the front's point over that of the ends' hull.
        ends = np.stack([scaled[np.argmin(scaled[:, m])] for m in range(self.n_objectives)])
        target = p @ ends
        offset = scaled - target
        across = offset - offset.mean(-1, keepdims=True)
        return _row(candidates, int(np.argmin((across**2).sum(-1))))

    def _candidates(self) -> tuple[Array, Array]:
        """Positions between which to choose, and their losses divided by their ranges."""
        if self.n_objectives == 2:
            t = np.linspace(self.positions[0, 0], self.positions[-1, 0], _GRID + 1)
            q = np.stack([t, 1 - t], axis=-1)
        else:
            divisions = 2
            while math.comb(divisions + self.n_objectives, self.n_objectives - 1) < _GRID:
                divisions += 1
            grid = np.array(das_dennis(self.n_objectives, divisions))
            # The measured positions fill a simplex, perhaps larger than that of preferences.
            q = grid @ self.positions[self.positions.argmax(0)]
        losses = self.losses_at(q)
        return q, scale_to_ranges(losses)

    def to_json(self) -> dict[str, Any]:
        return {
            "positions": self.positions.tolist(),
            "losses": self.losses.tolist(),
            "meaning": self.meaning,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """Raises InputError for anything else than what `to_json` returned."""
        try:
            return cls(np.array(value["positions"]), np.array(value["losses"]), value["meaning"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"This is not a calibration: {error}.") from error


def scale_to_ranges(losses: Array) -> Array:
    """Losses minus their least, divided by their range; 0 where there is no range."""
    low, high = losses.min(0), losses.max(0)
    width = np.where(high > low, high - low, 1.0)
    return np.asarray((losses - low) / width)


def measure_path(
    measure: Callable[[Array], Sequence[float]],
    n_objectives: int,
    meaning: Meaning = "even",
    *,
    points: int = 5,
    extrapolate: float = 1.0,
) -> Calibration:
    """Calibrate by measuring.

    Args:
        measure: position, shape (M,) -> losses, shape (M,).
        points: M = 2: positions from one end of the simplex to the other. M > 2: divisions of an
            edge plus one.
        extrapolate: How far beyond an end, a corner of the simplex, to look: by how much the weight
            of its objective may exceed 1, at the cost of all others alike. A step of an edge's is
            kept while the end's own loss falls by a twentieth of its range within the simplex; the
            first that gains less ends the search.
    """
    if points < 2 or not (math.isfinite(extrapolate) and extrapolate >= 0):
        raise InputError(
            f"A calibration takes 2 points or more and extrapolates by a finite length of at least "
            f"0; got {points} and {extrapolate}."
        )
    step = 1 / (points - 1)
    positions = list(np.array(das_dennis(n_objectives, points - 1)))
    losses = [np.array(measure(q)) for q in positions]
    worth = _WORTH * np.ptp(np.array(losses), axis=0)
    for own in range(n_objectives):
        last = next(f for q, f in zip(positions, losses, strict=True) if q[own] == 1)
        k = 1
        while k * step <= extrapolate + 1e-9:
            beyond = _beyond(own, k * step, n_objectives)
            found = np.array(measure(beyond))
            if not found[own] < last[own] - worth[own]:
                break
            positions.append(beyond)
            losses.append(found)
            last, k = found, k + 1
    order = np.argsort([q[0] for q in positions], kind="stable")
    return Calibration(np.array(positions)[order], np.array(losses)[order], meaning)


def _beyond(corner: int, step: float, n_objectives: int) -> Array:
    """The position so far beyond a corner, away from the simplex's centre."""
    q = np.full(n_objectives, -step / (n_objectives - 1))
    q[corner] = 1 + step
    return q


def _quadratic(q: Array) -> Array:
    """1, and all products of two coordinates up to their order; they sum to one, so no linear."""
    m = q.shape[-1]
    columns = [q[..., i] * q[..., j] for i in range(m) for j in range(i, m)]
    return np.stack(columns, axis=-1)


def _row(array: Array, index: int) -> tuple[float, ...]:
    return tuple(map(float, array[index]))


def pchip(x: Array, y: Array, at: Array) -> Array:
    """The piecewise cubic through (x, y) that is monotone wherever y is, at points within x.

    Source: F. N. Fritsch and J. Butland, SIAM J. Sci. Stat. Comput. 5 (1984): slopes are weighted
    harmonic means of the neighbouring secants, 0 where these differ in sign.
    """
    width, secant = np.diff(x), np.diff(y) / np.diff(x)
    if len(x) == 2:
        return np.asarray(y[0] + secant[0] * (at - x[0]))
    slopes = np.zeros(len(x))
    left, right = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    same = secant[:-1] * secant[1:] > 0
    inner = np.where(same, secant[:-1], 1.0), np.where(same, secant[1:], 1.0)
    slopes[1:-1] = np.where(same, (left + right) / (left / inner[0] + right / inner[1]), 0.0)
    slopes[0] = _end_slope(width[0], width[1], secant[0], secant[1])
    slopes[-1] = _end_slope(width[-1], width[-2], secant[-1], secant[-2])
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(width) - 1)
    h, s = width[i], (at - x[i]) / width[i]
    return np.asarray(
        y[i] * (1 + 2 * s) * (1 - s) ** 2
        + h * slopes[i] * s * (1 - s) ** 2
        + y[i + 1] * s**2 * (3 - 2 * s)
        + h * slopes[i + 1] * s**2 * (s - 1)
    )


def _end_slope(h0: float, h1: float, d0: float, d1: float) -> float:
    """The slope at an end by three points, cut off where it would not be monotone."""
    slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
    if slope * d0 <= 0:
        return 0.0
    if d0 * d1 < 0 and abs(slope) > 3 * abs(d0):
        return 3 * d0
    return float(slope)
