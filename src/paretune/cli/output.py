"""All that the commands print goes through here: names and messages may come from other people."""

import logging
import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from paretune.names import printable

if TYPE_CHECKING:
    from paretune.results.table import Table

_WIDTH = 120  # where the output is no terminal


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print, without what a terminal would obey."""
    typer.echo(printable(text), err=err, nl=nl)


class _Console(Console):
    """A console whose texts a terminal obeys in nothing; its own colours and moves stay."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def console(*, stderr: bool = False) -> Console:
    """Standard output or error; where it is no terminal, wide enough for tables."""
    plain: Any = {"markup": False, "emoji": False, "stderr": stderr}  # a name may hold [brackets]
    found = _Console(**plain)
    return found if found.is_terminal or stderr else _Console(**plain, width=_WIDTH)


def print_table(table: "Table", terminal: Console | None = None) -> None:
    """Print a table; where its numbers do not fit, in parts below each other."""
    terminal = terminal or console()
    for part in table.fitting(terminal.width):
        terminal.print(part.to_rich())


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def clean_messages() -> None:
    """Clean what warnings and logs print as well, and never fail at a letter's encoding."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Formatter())
    show = warnings.formatwarning

    def cleaned(*args: Any, **options: Any) -> str:
        return printable(show(*args, **options))

    warnings.formatwarning = cleaned
