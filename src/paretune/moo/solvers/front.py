"""A front as data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from paretune.errors import InputError
from paretune.files import read_object, write_json
from paretune.moo.decision import closest, knee
from paretune.moo.indicators import Hypervolume, hypervolume, nondominated
from paretune.moo.preference import Preference
from paretune.moo.solvers.journal import read_result, write_result
from paretune.moo.solvers.normalization import Normalization
from paretune.moo.solvers.result import Result

_FORMAT = "paretune front, 1"


@dataclass(frozen=True)
class Exploration:
    """A front as data: n points, in the order of the preferences that were asked for.

    Attributes:
        preferences: the n preferences, but for those that failed.
        results: what `minimize` returned for each of them.
        n_gradient_evaluations: over all runs, those that were not kept included.
        n_function_evaluations: likewise.
        normalization: the ideal and nadir point that the preferences were measured by; None
            without.
    """

    preferences: tuple[Preference, ...]
    results: tuple[Result, ...]
    n_gradient_evaluations: int
    n_function_evaluations: int
    normalization: Normalization | None = None

    @property
    def points(self) -> Tensor:
        """z, shape (n, *x0.shape)."""
        return torch.stack([result.x for result in self.results])

    @property
    def objectives(self) -> Tensor:
        """F, shape (n, M), float64."""
        return torch.stack([result.objectives for result in self.results])

    @property
    def residuals(self) -> Tensor:
        """kkt_residual, shape (n,), float64."""
        return torch.tensor([result.kkt_residual for result in self.results], dtype=torch.float64)

    @property
    def converged(self) -> bool:
        """Whether every point met the tolerance."""
        return all(result.converged for result in self.results)

    @property
    def nondominated(self) -> tuple[bool, ...]:
        """For each point whether no other point dominates it."""
        return tuple(map(bool, nondominated(self.objectives.numpy())))

    def hypervolume(self, reference: ArrayLike | None = None) -> Hypervolume:
        """Dominated hypervolume with the reference point used, see `indicators.hypervolume`."""
        return hypervolume(self.objectives.numpy(), reference)

    def knee(self) -> int:
        """The point that bulges most towards the ideal point, see `decision.knee`: its number."""
        return knee(self.objectives.numpy())

    def closest(self, reference: ArrayLike) -> int:
        """The point that meets a reference point (M,) of wanted values best, see
        `decision.closest`: its number."""
        return closest(self.objectives.numpy(), reference)

    def plot(self, names: Sequence[str] | None = None, ax: Any = None) -> Any:
        """The front drawn with matplotlib, see `plot.plot_front`: the axes."""
        from paretune.moo.plot import plot_front

        wanted = names or self.preferences[0].names
        return plot_front(self.objectives.numpy(), wanted, self.nondominated, ax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, to the last bit; `Exploration.load` reads it."""
        scale = self.normalization
        value = {
            "format": _FORMAT,
            "dtype": str(self.results[0].x.dtype).removeprefix("torch."),
            "preferences": [dict(preference) for preference in self.preferences],
            "results": [write_result(result) for result in self.results],
            "n_gradient_evaluations": self.n_gradient_evaluations,
            "n_function_evaluations": self.n_function_evaluations,
            "normalization": None
            if scale is None
            else {
                "ideal": scale.ideal.tolist(),
                "nadir": scale.nadir.tolist(),
                "runs": [write_result(run) for run in scale.runs],
            },
        }
        write_json(Path(path), value)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Exploration:
        """A front that `save` wrote. Raises InputError where the file is none."""
        value = read_object(Path(path), advice="name a file that Exploration.save wrote")
        if value.get("format") != _FORMAT:
            raise InputError(f"'{path}' is not a front that Exploration.save wrote.")
        like = torch.zeros(0, dtype=getattr(torch, value["dtype"]))
        scale = value["normalization"]
        return Exploration(
            tuple(map(Preference.of, value["preferences"])),
            tuple(_typed(row, like) for row in value["results"]),
            value["n_gradient_evaluations"],
            value["n_function_evaluations"],
            None
            if scale is None
            else Normalization(
                np.array(scale["ideal"]),
                np.array(scale["nadir"]),
                tuple(_typed(row, like) for row in scale["runs"]),
            ),
        )


def _typed(row: dict[str, Any], like: Tensor) -> Result:
    return read_result(row, torch.tensor(row["x"], dtype=like.dtype))
