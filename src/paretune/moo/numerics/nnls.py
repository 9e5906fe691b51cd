"""Least squares over x >= 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nonnegative_least_squares(A: Array, b: Array) -> Array:
    """argmin over x >= 0 of ‖A x − b‖, by the active-set method of Lawson and Hanson (1974).

    >>> nonnegative_least_squares(np.eye(2), np.array([1.0, -1.0])).tolist()
    [1.0, 0.0]
    """
    x = np.zeros(A.shape[1])
    used = np.zeros(A.shape[1], dtype=bool)
    rounding = 1e-12 * max(float(np.abs(A.T @ b).max(initial=0.0)), 1e-300)
    for _ in range(10 * A.shape[1]):
        gain = np.where(used, -np.inf, A.T @ (b - A @ x))
        entering = int(gain.argmax())
        if gain[entering] <= rounding:
            break
        used[entering] = True
        while True:
            trial = np.zeros_like(x)
            trial[used] = np.linalg.lstsq(A[:, used], b, rcond=None)[0]
            below = used & (trial <= 0)
            if not below.any():
                break
            # As far towards the trial as all stay at least 0; what reaches 0 leaves.
            reach = x[below] / (x[below] - trial[below])
            x = x + min(1.0, float(reach.min())) * (trial - x)
            used &= x > 1e-15 * max(1.0, float(x.max()))
            x[~used] = 0
        x = trial
    return x
