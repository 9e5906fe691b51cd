"""Mean and spread of repeated measurements."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of `count` values; the deviation of one is None."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """Of the values that are finite numbers; None if there is none."""
        finite = [value for value in values if value is not None and math.isfinite(value)]
        if not finite:
            return None
        mean = math.fsum(finite) / len(finite)
        if len(finite) == 1:
            return cls(mean, None, 1)
        square = math.fsum((value - mean) ** 2 for value in finite) / (len(finite) - 1)
        return cls(mean, math.sqrt(square), len(finite))

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN for one value."""
        return math.nan if self.deviation is None else self.deviation / math.sqrt(self.count)

    def __str__(self) -> str:
        return format(self, "")

    def __format__(self, spec: str) -> str:
        """``"0.52 ± 0.01"``, or the one value; without a format, to the digits that matter."""
        if self.deviation is None:
            return format(self.mean, spec or ".4g")
        return f"{format(self.mean, spec or '.3g')} ± {format(self.deviation, spec or '.1g')}"
