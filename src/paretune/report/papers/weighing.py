"""What `paretune weigh` left in a folder, as the WC-Penalty paper's exhibits need it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from paretune import yaml_syntax
from paretune.errors import InputError, NothingToShowError
from paretune.files import read_object
from paretune.results.run_folder import read_manifest, saved_recipe

OTHER_TASKS = ("sets", "planted")
"""Tasks of which the papers have nothing: `paretune.recipes.mixture.TASKS`."""

_SUMMARY = "weigh.json"


def is_weighing(path: Path) -> bool:
    """Whether a run folder is one of `paretune weigh`."""
    return "task" in _recipe(path)


@dataclass(frozen=True)
class Weighing:
    """A run of `paretune weigh`: its recipe's task, and the finished cells.

    Attributes:
        reference_point: corner of the hypervolumes; of an unfinished run, of its cells so far.
        cells: as in ``result.json``, of those that are done.
        unfinished: what is missing and how to get it; empty if nothing is.
    """

    path: Path
    task: Mapping[str, Any]
    objectives: tuple[str, ...]
    reference_point: tuple[float, ...]
    cells: tuple[dict[str, Any], ...]
    unfinished: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``weigh.json``, or the cells of a run that has none yet.

        Raises:
            NothingToShowError: no cell is finished, or it weighs what the papers do not.
            InputError: a file that is damaged, or not of this version.
        """
        recipe = _recipe(path)
        task = recipe.get("task")
        if isinstance(task, dict) and task.get("name") in OTHER_TASKS:
            raise NothingToShowError(
                f"'{path}' weighs sets of the user's own or planted ones, of which the papers have "
                f"no table: see {path / 'weigh.md'}."
            )
        again = f"run `paretune weigh {path / 'recipe.yaml'}` again"
        whole = (path / _SUMMARY).is_file()
        try:
            found = read_object(path / _SUMMARY) if whole else _so_far(path, recipe)
            missing = found.get("missing", 0)
            cells = tuple(each for each in found["cells"] if each["status"] == "done")
            if not cells:
                raise NothingToShowError(
                    f"'{path}' is a run of `paretune weigh` and is not finished: {again}."
                )
            unfinished = ""
            if not whole:
                unfinished = f"Of '{path}' {len(cells)} cells are shown, without pictures: {again}."
            elif missing:
                count = f"{len(cells)} of {len(found['cells']) + missing}"
                unfinished = f"Of '{path}' {count} cells are shown: {again}."
            return cls(
                path=path,
                task=recipe["task"],
                objectives=tuple(found["objectives"]),
                reference_point=tuple(found["reference_point"]),
                cells=cells,
                unfinished=unfinished,
            )
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"'{path}' does not hold a weighing of this version ({error}): {again}."
            ) from error

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(cell["method"] for cell in self.cells))

    @property
    def seeds(self) -> list[int]:
        return sorted({cell["seed"] for cell in self.cells})

    @property
    def model(self) -> str:
        """The last part of a language model's name; of other tasks empty."""
        model = self.task.get("model") or {}
        return str(model.get("name", "")).rstrip("/").split("/")[-1]

    def losses(
        self, method: str, seed: int, chosen: Callable[[Mapping[str, float]], bool] | None = None
    ) -> NDArray[np.float64]:
        """Re-solved losses (n, S) of a method's points, or of those at chosen preferences."""
        rows = [
            cell["resolved"]
            for cell in self.cells
            if (cell["method"], cell["seed"]) == (method, seed)
            and (chosen is None or (cell["preference"] and chosen(cell["preference"])))
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.objectives))


def _recipe(path: Path) -> dict[str, Any]:
    saved = saved_recipe(path)
    recipe = yaml_syntax.parse(yaml_syntax.read(saved, f"'{saved}'"), f"'{saved}'")
    return recipe if isinstance(recipe, dict) else {}


def _so_far(path: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What ``weigh.json`` would hold of the cells that have a result by now."""
    cells = [read_object(each) for each in sorted(path.glob("cells/*/result.json"))]
    ends = np.array([each["resolved"] for each in cells if each["status"] == "done"])
    reference: Sequence[float] = recipe.get("reference_point") or ()
    if not reference and len(ends):
        reference = (ends.max(0) + 0.1 * (ends.max(0) - ends.min(0))).tolist()
    objectives = read_manifest(path).get("objectives", ())
    return {"objectives": objectives, "reference_point": reference, "cells": cells}
