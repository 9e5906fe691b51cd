"""What an exhibit of a paper is: its layout, its printed values, and how runs fill it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

from paretune.errors import NothingToShowError
from paretune.judging.summary import Summary as Judged
from paretune.report.judges import read_judges
from paretune.report.papers.weighing import Weighing, is_weighing
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
class Found:
    """The runs that exhibits are made of.

    Attributes:
        left_out: a sentence for each run that is shown in part or not at all: what is not there,
            and what makes it.
    """

    runs: Sequence[Run] = ()
    weighings: Sequence[Weighing] = ()
    left_out: Sequence[str] = ()

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Self:
        """Read folders of `paretune sweep`, `compare` and `weigh`, finished or not.

        Raises:
            InputError: a folder that is none of these, a damaged file, or no run of them has
                anything to show.
        """
        runs: list[Run] = []
        weighings: list[Weighing] = []
        left_out: list[str] = []
        for path in dict.fromkeys(paths):
            saved_recipe(path)  # complains
            found: Run | Weighing
            try:
                if is_weighing(path):
                    weighings.append(found := Weighing.read(path))
                else:
                    runs.append(found := Run.read(path))
                    warn_of_damage(path)
            except NothingToShowError as nothing:
                left_out.append(str(nothing))
                continue
            if found.unfinished:
                left_out.append(found.unfinished)
        if not runs and not weighings:
            raise NothingToShowError("\n".join(left_out) or "No run folder was given.")
        return cls(runs, weighings, left_out)

    def name(self, run: Run | Weighing) -> str:
        """A run's folder, with as many of those above as tell it from other runs' of that name."""
        place = run.path.absolute().parts
        runs: list[Run | Weighing] = [*self.runs, *self.weighings]
        others = [other for each in runs if (other := each.path.absolute().parts) != place]
        count = 1
        while any(each[-count:] == place[-count:] for each in others) and count < len(place):
            count += 1
        return "/".join(place[-count:])

    def source(self, run: Run | Weighing, *more: str) -> str:
        """What a row is of: a run's name, and what else there is to say."""
        return ", ".join([self.name(run), *(each for each in more if each)])

    def file_name(self, run: Run | Weighing) -> str:
        """A run's name as part of a picture's."""
        return as_file_name(self.name(run))

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
        settings: whether columns are values of a setting, which stand in the order of these.
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
    settings: bool = False
    draw: Callable[[Found, Path, str], Sequence[Path]] = lambda found, folder, stem: ()
    note: str = ""

    def table(self, found: Found) -> Table | None:
        """The paper's values with those of the runs beside them; None without any.

        The paper's columns come first, in its order; settings stand in their own.
        """
        ours = list(self.rows(found))
        columns = list(dict.fromkeys(name for values in self.printed.values() for name in values))
        for row in ours:
            given = (name for name, value in row.values.items() if value is not None)
            columns += [name for name in given if name not in columns]
        if self.settings:
            columns.sort(key=_setting)
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


def _setting(column: str) -> float:
    """The number at a column's end; what is none, such as ``"μ = auto"``, comes last."""
    try:
        return float(column.rpartition(" ")[2])
    except ValueError:
        return math.inf


def as_file_name(source: str) -> str:
    """A row's source as part of a picture's name."""
    return source.replace(", ", "-").replace("/", "-")


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
