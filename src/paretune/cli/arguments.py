"""Arguments that several commands share."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe by name, or a path to your own.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, e.g. train.max_steps=200."),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Delete what an earlier run left in the run folder.")
]


@contextmanager
def resumable() -> Iterator[None]:
    """On Ctrl-C, say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        again = [argument for argument in sys.argv[1:] if argument != "--fresh"]
        typer.echo(
            "\nStopped. What is done is kept; to go on: " + shlex.join(["paretune", *again]),
            err=True,
        )
        raise typer.Exit(130) from None
