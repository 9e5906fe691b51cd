"""Gradients of several groups of a step's rows, each group with M of its own: K·M in one bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretune.moo.weightings import Weights


def of_group(objective: str, group: int) -> str:
    """What an objective on a group's rows is called in a batch."""
    return f"{objective} {group}"


def divide(
    pairs: Mapping[str, Any], objectives: Sequence[str], groups: NDArray[np.int64], count: int
) -> dict[str, Any]:
    """The pairs of each group's rows as those of an objective of their own.

    Args:
        pairs: Of a batch, as `PairCollator` makes them.
        groups: Of each row, ``(B,)``, below `count`.
    """
    divided = {}
    for k in range(count):
        rows = torch.tensor(np.flatnonzero(groups == k))
        for name in objectives:
            divided[of_group(name, k)] = {
                key: value[rows.to(value.device)] for key, value in pairs[name].items()
            }
    return divided


def present(totals: Tensor, size: int) -> list[tuple[int, slice]]:
    """The groups that have rows in a step (a last batch may be short), with their places.

    Args:
        totals: Weights of the pairs of each objective of each group, ``(K·M,)``.
        size: M.
    """
    own = [slice(first, first + size) for first in range(0, len(totals), size)]
    return [(k, part) for k, part in enumerate(own) if bool((totals[part] > 0).all())]


@dataclass(frozen=True)
class JoinedWeights(Weights):
    """The weights of all gradients of several groups."""

    all_vertices: bool

    @property
    def vertex(self) -> bool:
        """Whether λ* is at a vertex in every group."""
        return self.all_vertices


def join(found: Mapping[int, Weights], size: int, length: int) -> JoinedWeights:
    """The weights of some groups as those of all gradients: the mean of the groups' directions."""
    weights, lam = torch.zeros(2, length, dtype=torch.float64)
    for k, part in found.items():
        own = slice(k * size, (k + 1) * size)
        weights[own], lam[own] = part.weights / len(found), part.lam / len(found)
    parts = list(found.values())

    def mean(name: str) -> float:
        return float(sum(getattr(part, name) for part in parts) / len(parts))

    return JoinedWeights(
        weights=weights,
        lam=lam,
        gap=max(part.gap for part in parts),
        mgda_term=mean("mgda_term"),
        chebyshev_term=mean("chebyshev_term"),
        complementarity=mean("complementarity"),
        min_norm=mean("min_norm"),
        all_vertices=all(part.vertex for part in parts),
    )
