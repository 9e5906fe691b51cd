"""What an exhibit of a paper is: its layout, its printed values, and how runs fill it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from paretune import yaml_syntax
from paretune.errors import InputError
from paretune.files import read_object
from paretune.judging.summary import Summary as Judged
from paretune.report.judges import read_judges
from paretune.results.damage import warn_of_damage
from paretune.results.run_folder import Run, saved_recipe
from paretune.results.table import Cell, Column, Table, left

PAPER = "paper"
"""The source of the rows that a paper prints."""

_ALIASES = {"harmless": "harmlessness", "helpful": "helpfulness"}

Values = Mapping[str, float | None]


class Row(NamedTuple):
    """A row of a table: what names it, where its values are from, and the values by column."""

    keys: tuple[str, ...]
    source: str
    values: Values


@dataclass(frozen=True)
class Weighing:
    """What `paretune weigh` left in a folder: its recipe's task, and ``weigh.json``."""

    path: Path
    task: Mapping[str, Any]
    objectives: tuple[str, ...]
    preferences: tuple[dict[str, float], ...]
    reference_point: tuple[float, ...]
    cells: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises InputError where the folder has no ``weigh.json`` of this version."""
        recipe = yaml_syntax.parse((path / "recipe.yaml").read_text(encoding="utf-8"), str(path))
        found = read_object(path / "weigh.json")
        if "criteria" in found:
            raise InputError(
                f"'{path}' weighs sets of the user's own or planted ones, of which the papers have "
                f"no table: see {path / 'weigh.md'}, and leave it out."
            )
        try:
            return cls(
                path=path,
                task=recipe["task"],
                objectives=tuple(found["objectives"]),
                preferences=tuple(found["preferences"]),
                reference_point=tuple(found["reference_point"]),
                cells=tuple(each for each in found["cells"] if each["status"] == "done"),
            )
        except (KeyError, TypeError) as error:
            raise InputError(
                f"'{path}' does not hold a weighing of this version ({error}): run "
                f"`paretune weigh {path / 'recipe.yaml'}` again."
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


@dataclass(frozen=True)
class Found:
    """The runs that exhibits are made of."""

    runs: Sequence[Run] = ()
    weighings: Sequence[Weighing] = ()

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Self:
        """Read folders of `paretune sweep`, `compare` and `weigh`.

        Raises:
            InputError: a folder that is none of these, or has no results yet.
        """
        runs: list[Run] = []
        weighings: list[Weighing] = []
        for path in dict.fromkeys(paths):
            saved_recipe(path)  # complains
            if (path / "weigh.json").is_file():
                weighings.append(Weighing.read(path))
            else:
                runs.append(Run.read(path))
                warn_of_damage(path)
        return cls(runs, weighings)

    @cached_property
    def judged(self) -> list[tuple[Run, Judged]]:
        """Every judge of every run."""
        return [(run, judge) for run in self.runs for judge in read_judges(run.path)]


@dataclass(frozen=True)
class Exhibit:
    """A table or figure of a paper.

    Attributes:
        name: as the paper calls it.
        caption: in short.
        needs: which run it is made of, and the command.
        keys: headings of the columns that name a row.
        spec: how a value is written, from the row's keys; the paper's digits.
        printed: the values the paper prints, by the keys of their row.
        rows: the values of runs.
        draw: draws the figures into a folder under names that begin with a stem, as far as runs
            have what they show; the files.
        note: what is not as in the paper, or not said there.
    """

    name: str
    caption: str
    needs: str
    keys: tuple[str, ...] = ("",)
    spec: Callable[[tuple[str, ...]], str] = lambda keys: ".4f"
    printed: Mapping[tuple[str, ...], Values] = field(default_factory=dict)
    rows: Callable[[Found], Iterable[Row]] = lambda found: ()
    draw: Callable[[Found, Path, str], Sequence[Path]] = lambda found, folder, stem: ()
    note: str = ""

    def table(self, found: Found) -> Table | None:
        """The paper's values with those of the runs beside them; None without any."""
        ours = list(self.rows(found))
        columns = [name for row in ours for name, value in row.values.items() if value is not None]
        columns = list(dict.fromkeys(columns))
        for values in self.printed.values():
            columns += [name for name in values if name not in columns]
        rows = beside(ours, self.printed)
        if not rows:
            return None
        cells: list[list[Cell]] = []
        for row in rows:
            spec = self.spec(row.keys)
            texts = [written(row.values.get(name), spec) for name in columns]
            cells.append([*row.keys, row.source, *texts])
        head = [*map(left, self.keys), left("source"), *map(Column, columns)]
        return Table(head, cells, f"{self.name}: {self.caption}")


def beside(ours: Sequence[Row], printed: Mapping[tuple[str, ...], Values]) -> list[Row]:
    """The paper's rows, each after the runs' rows of the same name; then what it has not."""
    rows: list[Row] = []
    for keys, values in printed.items():
        rows += [row for row in ours if same(row.keys, keys)]
        rows.append(Row(keys, PAPER, values))
    return rows + [row for row in ours if not any(same(row.keys, keys) for keys in printed)]


def same(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two rows have one name, whatever the writing."""
    return [*map(plain, first)] == [*map(plain, second)]


def plain(name: str) -> str:
    """``"harmless"`` and ``"Harmlessness"`` are one: ``"harmlessness"``."""
    text = name.lower().replace("_", " ").replace("-", " ")
    return " ".join(_ALIASES.get(word, word) for word in text.split())


def written(value: float | None, spec: str) -> str:
    """A value in the paper's digits, or in two digits where those would leave nothing of it."""
    if value is None:
        return ""
    text = format(value, spec)
    nothing = value != 0 and not any(c in "123456789" for c in text.split("e")[0])
    if not nothing:
        return text
    return f"{100 * value:.2g}%" if spec.endswith("%") else f"{value:.2g}"
