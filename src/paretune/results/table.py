"""A table as data, and as text in Markdown, on a terminal and in HTML."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Literal

from paretune.results.text import markdown_text

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_TEXT_WIDTH = 16  # letters of a column of texts on a terminal, at least, if it has so many

Cell = object
"""A text, or what its column's format writes; None and NaN are empty."""


@dataclass(frozen=True)
class Column:
    """A heading, the format of what is no text below it, and to which side that stands.

    A terminal may break the lines of a column unless `wrap` is false.
    """

    name: str
    format: str = ""
    align: Literal["left", "right"] = "right"
    wrap: bool = True

    def text(self, cell: Cell) -> str:
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return ""
        return cell if isinstance(cell, str) else format(cell, self.format)


def left(name: str) -> Column:
    """A column of texts, such as names."""
    return Column(name, align="left")


def numbers(names: Sequence[str], spec: str = "") -> list[Column]:
    """Columns of one format."""
    return [Column(name, spec) for name in names]


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first column says what a row is of."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""

    @property
    def head(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def texts(self) -> list[list[str]]:
        """The rows as they are read."""
        return [
            [column.text(cell) for column, cell in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def to_markdown(self) -> str:
        """A GitHub-flavoured table, whatever its texts hold; the title is not in it."""
        head = map(markdown_text, self.head)
        rule = ["---" if column.align == "left" else "---:" for column in self.columns]
        rows = self._written(markdown_text, str)
        return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))

    def to_html(self) -> str:
        """A ``table`` element, escaped; the minus of a number is a real minus sign."""
        from markupsafe import escape

        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.head)
        lines = []
        for first, *others in self._written(
            escape, lambda text: text.replace("-", "\N{MINUS SIGN}")
        ):
            cells = "".join(f"<td>{text}</td>" for text in others)
            lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>\n')
        caption = f'<caption class="sr">{escape(self.title)}</caption>'
        return (
            f"<table>\n{caption}\n<thead><tr>{head}</tr></thead>\n"
            f"<tbody>\n{''.join(lines)}</tbody>\n</table>"
        )

    def fitting(self, width: int) -> "list[Table]":
        """The table, or as many below each other as have their numbers whole in so many letters.

        Each part begins with the columns of texts that stand before the first number.
        """
        first = next((k for k, column in enumerate(self.columns) if column.align == "right"), 0)
        widths = [self._least(k) + 3 for k in range(len(self.columns))]
        room = width - 1 - sum(widths[:first])
        parts: list[list[int]] = [[]]
        for k in range(first, len(widths)):
            if parts[-1] and sum(widths[each] for each in [*parts[-1], k]) > room:
                parts.append([])
            parts[-1].append(k)
        if len(parts) == 1:
            return [self]
        places = [[*range(first), *part] for part in parts]
        return [
            Table(
                [self.columns[k] for k in place],
                [[row[k] for k in place] for row in self.rows],
                self.title if number == 0 else f"{self.title}, continued".lstrip(", "),
            )
            for number, place in enumerate(places)
        ]

    def _least(self, place: int) -> int:
        """Letters that a column needs: of a number's, its longest; of texts', a few."""
        column = self.columns[place]
        cells = [row[place] for row in self.texts]
        lines = [line for cell in cells for line in cell.split("\n")]
        longest = max((len(line) for line in lines), default=0)
        words = max((len(word) for word in column.name.split()), default=0)
        if column.align == "left" and column.wrap:
            return min(max(longest, words), _TEXT_WIDTH)
        return max(longest, words)

    def _written(
        self, text: Callable[[str], str], formatted: Callable[[str], str]
    ) -> Iterator[list[str]]:
        """The rows, texts by one function and what was formatted by another."""
        for row, texts in zip(self.rows, self.texts, strict=True):
            yield [
                text(written) if isinstance(cell, str) else formatted(written)
                for cell, written in zip(row, texts, strict=True)
            ]

    def to_rich(self) -> "RichTable":
        """For `paretune.cli.output.console`; what looks like markup stays text."""
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=Text(self.title) if self.title else None, title_justify="left")
        for place, column in enumerate(self.columns):
            number = column.align == "right"
            # Texts give way first: a number is never broken, only the heading above it.
            name = fill(column.name, max(self._least(place), 1)) if number else column.name
            whole = number or not column.wrap
            table.add_column(Text(name), justify=column.align, no_wrap=whole, overflow="fold")
        for row in self.texts:
            table.add_row(*map(Text, row))
        return table
