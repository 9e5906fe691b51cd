"""A table as data, and as text in Markdown, on a terminal and in HTML."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from paretune.results.text import markdown_text

if TYPE_CHECKING:
    from rich.table import Table as RichTable

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
        for column in self.columns:
            table.add_column(Text(column.name), justify=column.align, no_wrap=not column.wrap)
        for row in self.texts:
            table.add_row(*map(Text, row))
        return table
