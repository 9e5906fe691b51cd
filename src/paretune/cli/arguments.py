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
Prefer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=WEIGHT ...",
        help="How much each objective matters, e.g. --prefer harmless=0.7 helpful=0.3.",
    ),
]
Method = Annotated[
    str | None, typer.Option(metavar="NAME", help="Of a comparison: which of its methods.")
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


def weights_and_overrides(
    prefer: list[str] | None, others: list[str] | None
) -> tuple[dict[str, float], list[str]]:
    """Tell weights, which follow ``--prefer`` with spaces or commas between, from overrides."""
    from paretune.errors import InputError
    from paretune.recipes import Recipe

    weights: dict[str, float] = {}
    overrides = []
    for item in [*(",".join(prefer).split(",") if prefer else []), *(others or [])]:
        name, _, value = item.partition("=")
        if not prefer or name.split(".")[0] in Recipe.model_fields:
            overrides.append(item)
            continue
        try:
            weights[name] = float(value)
        except ValueError:
            raise InputError(
                f"'{item}' is not a weight: write NAME=WEIGHT, for example harmless=0.7."
            ) from None
    return weights, overrides
