"""``paretune tables``."""

from pathlib import Path
from typing import Annotated

import typer

from paretune.cli.arguments import resumable
from paretune.cli.output import echo, print_table


def tables(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders of sweep, compare and weigh."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")
    ] = Path("tables"),
) -> None:
    """Print and draw every table and figure of the two papers that these runs can show.

    They are in the papers' layout and digits, with the printed values beside; of those that no run
    here shows, a line says which run they need. FOLDER gets tables.md, tables.html and the figures.
    Of unfinished runs what is done is shown; a line says what is not and which command makes it.
    """
    with resumable():
        from paretune.report.papers.write import write_tables

        shown = write_tables(runs, output, tell=lambda message: echo(message, err=True))
        for paper, exhibits in shown.items():
            for each in exhibits:
                if each.filled and each.table is not None:
                    print_table(each.table)
                elif each.filled:
                    figures = ", ".join(path.name for path in each.figures)
                    echo(f"{paper}, {each.exhibit.name}: {figures}")
                else:
                    echo(f"{paper}, {each.exhibit.name}: {each.missing}")
