"""Loss, accuracy and margin of each objective on preference pairs, and the Chebyshev value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from paretune.errors import InputError

_COLUMNS = ("weight", "loss", "accuracy", "margin")


def chebyshev_value(losses: Mapping[str, float], preference: Mapping[str, float]) -> float:
    """max_m p_m f^m over the objectives with p_m > 0; NaN if one of those losses is NaN.

    Raises:
        InputError: if an objective with a positive weight has no loss.
    """
    live = {name: weight for name, weight in preference.items() if weight > 0}
    missing = [name for name in live if name not in losses]
    if missing:
        raise InputError(
            f"The preference gives weight to {missing[0]!r}, which was not evaluated; "
            f"evaluated objectives: {', '.join(losses) or 'none'}."
        )
    terms = [weight * losses[name] for name, weight in live.items()]
    return math.nan if any(math.isnan(term) for term in terms) else max(terms)


class PreferenceMetrics:
    """Weighted sums of loss, accuracy and margin, one row an objective.

    Every mean is Σ w x / Σ w over the pairs. A pair counts as accurate when its margin is
    positive, and as half when the margin is exactly zero, so an untrained adapter scores 0.5.
    The sums are plain float64 numbers on the CPU: adding `tensor()` of all processes and reading
    the result back with `from_tensor` gives the metrics of the joined data.
    """

    def __init__(self, objectives: Sequence[str]) -> None:
        self.objectives = tuple(objectives)
        self._row = {name: row for row, name in enumerate(self.objectives)}
        self._sums = torch.zeros(len(self.objectives), len(_COLUMNS), dtype=torch.float64)

    @classmethod
    def from_tensor(cls, objectives: Sequence[str], sums: Tensor) -> Self:
        """The accumulator whose `tensor()` is `sums`, shape (objectives, 4)."""
        metrics = cls(objectives)
        metrics._sums.copy_(sums)
        return metrics

    def tensor(self) -> Tensor:
        """A copy of the sums, (objectives, 4) float64 CPU: Σw, Σw·loss, Σw·accuracy, Σw·margin."""
        return self._sums.clone()

    @torch.no_grad()
    def update(
        self, objective: str, losses: Tensor, margins: Tensor, weight: Tensor | None = None
    ) -> None:
        """Add a batch of pairs of one objective; all tensors (pairs,), `weight` defaults to 1."""
        losses, margins = (values.detach().double().cpu() for values in (losses, margins))
        weight = torch.ones_like(losses) if weight is None else weight.detach().double().cpu()
        accurate = torch.where(margins.isnan(), margins, 0.5 * (1 + margins.sign()))
        columns = torch.stack([torch.ones_like(losses), losses, accurate, margins])
        self._sums[self._row[objective]] += columns @ weight

    def result(
        self, preference: Mapping[str, float] | None = None, prefix: str = "eval"
    ) -> dict[str, float]:
        """`{prefix}_{objective}_loss|_accuracy|_margin`; with a preference, `{prefix}_chebyshev`.

        Raises:
            InputError: if an objective has no pair with a positive weight, or the preference
                gives weight to an objective that is not here.
        """
        values: dict[str, float] = {}
        losses: dict[str, float] = {}
        for name, row in zip(self.objectives, self._sums.tolist(), strict=True):
            total = row[0]
            if not total > 0:
                raise InputError(
                    f"Objective {name!r} has no evaluation pair with a positive weight; "
                    "add pairs to this split, or leave the objective out."
                )
            for column, value in zip(_COLUMNS[1:], row[1:], strict=True):
                values[f"{prefix}_{name}_{column}"] = value / total
            losses[name] = row[1] / total
        if preference is not None:
            values[f"{prefix}_chebyshev"] = chebyshev_value(losses, preference)
        return values
