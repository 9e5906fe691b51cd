"""Preferences: which objective matters how much, as named points of the probability simplex.

Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paretune.errors import InputError

SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Preference(Mapping[str, float]):
    """Names and weights of the objectives: a frozen, ordered mapping that sums to one.

    The weights are kept as given (within 1e-6 of summing to one), never renormalised.

    >>> preference = Preference.of({"harmless": 0.8, "helpful": 0.2})
    >>> preference["harmless"], preference.names, preference.slug()
    (0.8, ('harmless', 'helpful'), 'harmless0.80-helpful0.20')
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise InputError("A preference needs at least one objective.")
        if len(self.names) != len(self.weights):
            raise InputError(
                f"A preference needs one weight per objective: {len(self.names)} names and "
                f"{len(self.weights)} weights were given."
            )
        if len(set(self.names)) < len(self.names):
            raise InputError(f"The objectives of a preference must differ, got {self.names}.")
        for name, weight in zip(self.names, self.weights, strict=True):
            if not math.isfinite(weight) or weight < 0:
                raise InputError(
                    f"The preference weight of {name!r} is {weight}; "
                    "weights must be finite and at least 0."
                )
        total = math.fsum(self.weights)
        if abs(total - 1) > SUM_TOLERANCE:
            listed = ", ".join(f"{name}={weight:g}" for name, weight in self.items())
            raise InputError(f"Preference weights must sum to 1, but {listed} sum to {total:.6g}.")

    @classmethod
    def of(cls, weights: Mapping[str, float] | Sequence[float] | NDArray[np.float64]) -> Preference:
        """Make a preference from a mapping, or from bare weights (named f1, f2, ...).

        Raises InputError, naming the offender, for a weight that is negative, not finite or not a
        number, and for weights that do not sum to one within 1e-6.
        """
        if isinstance(weights, Preference):
            return weights
        if not isinstance(weights, Mapping):
            try:
                weights = {f"f{m}": weight for m, weight in enumerate(weights, start=1)}
            except TypeError:
                raise InputError(
                    f"A preference must be a list of weights, got {weights!r}."
                ) from None
        numbers = []
        for name, weight in weights.items():
            try:
                numbers.append(float(weight) + 0.0)  # no -0.0, which would be another point
            except (TypeError, ValueError):
                raise InputError(
                    f"The preference weight of {name!r} must be a number, got {weight!r}."
                ) from None
        return cls(tuple(weights), tuple(numbers))

    def __getitem__(self, name: str) -> float:
        try:
            return self.weights[self.names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def live(self) -> tuple[str, ...]:
        """The objectives of positive weight."""
        return tuple(name for name, weight in self.items() if weight > 0)

    def array(self) -> NDArray[np.float64]:
        """The weights, shape (M,), float64."""
        return np.array(self.weights, dtype=np.float64)

    def slug(self) -> str:
        """A name for files and folders: two decimals when they are exact, otherwise four."""
        exact = all(abs(weight - round(weight, 2)) <= 1e-9 for weight in self.weights)
        decimals = 2 if exact else 4
        return "-".join(
            f"{re.sub('[^A-Za-z0-9_]+', '_', name)}{weight:.{decimals}f}"
            for name, weight in self.items()
        )


def das_dennis(n_objectives: int, divisions: int) -> list[tuple[float, ...]]:
    """All points of the simplex with coordinates k / divisions, in lexicographic order.

    There are C(divisions + n_objectives - 1, n_objectives - 1) of them.
    Source: I. Das and J. E. Dennis, SIAM J. Optim. 8 (1998), section 5.

    >>> das_dennis(2, 2)
    [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    """
    if n_objectives < 1 or divisions < 1:
        raise InputError(
            "A Das-Dennis grid needs at least 1 objective and 1 division, "
            f"got {n_objectives} and {divisions}."
        )
    slots = divisions + n_objectives - 1  # stars and bars: the bars' places among the slots
    points = []
    for bars in combinations(range(slots), n_objectives - 1):
        edges = (-1, *bars, slots)
        counts = (right - left - 1 for left, right in pairwise(edges))
        points.append(tuple(count / divisions for count in counts))
    return points


def _each_in_turn(large: float, small: float) -> list[tuple[float, ...]]:
    return [tuple(large if m == favoured else small for m in range(5)) for favoured in range(5)]


_NAMED: dict[str, list[tuple[float, ...]]] = {
    "clamp_task1": [(0.0, 1.0), (0.2, 0.8), (0.4, 0.6), (0.6, 0.4), (0.8, 0.2), (1.0, 0.0)],
    "clamp_task2": [
        (0.1, 0.1, 0.8),
        (0.1, 0.8, 0.1),
        (0.8, 0.1, 0.1),
        (0.2, 0.3, 0.5),
        (0.2, 0.5, 0.3),
        (0.5, 0.2, 0.3),
        (1 / 3, 1 / 3, 1 / 3),
    ],
    "mobl_strong": _each_in_turn(0.96, 0.01),
    "mobl_slight": _each_in_turn(0.84, 0.04),
}


def named_preferences(
    name: Literal["clamp_task1", "clamp_task2", "mobl_strong", "mobl_slight"] | str,
) -> list[tuple[float, ...]]:
    """The preferences of the papers' experiments.

    - ``clamp_task1``: CLAMP Task 1, [harmless, helpful];
    - ``clamp_task2``: CLAMP Task 2, [honesty, helpfulness, instruction following];
    - ``mobl_strong``, ``mobl_slight``: WC-Penalty, 0.96 (0.84) on one of five criteria in turn and
      0.01 (0.04) on the others.
    """
    if name not in _NAMED:
        raise InputError(f"Unknown preference set {name!r}; there are {', '.join(_NAMED)}.")
    return list(_NAMED[name])
