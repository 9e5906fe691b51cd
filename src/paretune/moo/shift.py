"""What the weighted-Chebyshev theory requires of a problem: positive objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paretune.errors import InputError

Shift = float | Sequence[float] | None


def read_shift(shift: Shift, size: int) -> list[float]:
    """One finite value per objective. Raises InputError."""
    if shift is None:
        return [0.0] * size
    values = [float(shift)] * size if isinstance(shift, int | float) else list(map(float, shift))
    if len(values) != size:
        raise InputError(f"shift has {len(values)} values for {size} objectives.")
    if not all(map(math.isfinite, values)):
        raise InputError("shift must be finite.")
    return values


def check_finite(values: Sequence[float], where: str) -> None:
    """Raise InputError unless all objectives are finite."""
    for s, value in enumerate(values):
        if not math.isfinite(value):
            raise InputError(f"Objective {s} is {value} {where}; it must be finite there.")


def check_positive(values: Sequence[float], where: str) -> None:
    """Raise InputError unless all (shifted) objectives are finite and positive."""
    check_finite(values, where)
    for s, value in enumerate(values):
        if value <= 0:
            raise InputError(
                f"Objective {s} is {value:.6g} {where}, but the weighted-Chebyshev methods need "
                f"positive objectives: give shift=c with f + c > 0 (more than {-value:.6g} for "
                "this one), or shift=-z* + margin to measure from an ideal point z*."
            )
