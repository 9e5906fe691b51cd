"""Arguments that several commands share."""

import math
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from paretune.cli.output import echo


def _shipped(incomplete: str) -> list[str]:
    """Names of recipes for the shell's completion."""
    from paretune.recipes import shipped_recipes
    from paretune.recipes.reading import COMMANDS

    names = {name for command in COMMANDS for name in shipped_recipes(command)}
    return sorted(name for name in names if name.startswith(incomplete))


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A shipped recipe by name, or a path to your own.",
        autocompletion=_shipped,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, e.g. train.max_steps=200."),
]
AnswerOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Changes to the recipe, e.g. evaluation.max_new_tokens=200."
    ),
]
Prefer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=WEIGHT ...",
        help="How much each objective matters, in any unit, e.g. --prefer harmless=7 helpful=3.",
    ),
]
Method = Annotated[
    str | None, typer.Option(metavar="NAME", help="Of a comparison: which of its methods.")
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Delete what an earlier run left in the run folder.")
]


def _allow(wanted: bool) -> bool:
    if wanted:
        from paretune.models import TRUST_VARIABLE

        os.environ[TRUST_VARIABLE] = "1"
    return wanted


TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        callback=_allow,
        help="Let code that comes with a model run, where the recipe says that it is needed.",
    ),
]


@contextmanager
def resumable() -> Iterator[None]:
    """On Ctrl-C, say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        again = [argument for argument in sys.argv[1:] if argument != "--fresh"]
        echo(
            "\nStopped. What is done is kept; to go on: " + shlex.join(["paretune", *again]),
            err=True,
        )
        raise typer.Exit(130) from None


def weights_and_overrides(
    prefer: list[str] | None, others: list[str] | None
) -> tuple[dict[str, float], list[str]]:
    """Tell weights, which follow ``--prefer`` with spaces or commas between, from overrides."""
    from paretune.errors import InputError
    from paretune.names import shown
    from paretune.recipes import Recipe

    weights: dict[str, float] = {}
    overrides = []
    for item in [*(",".join(prefer).split(",") if prefer else []), *(others or [])]:
        name, _, value = item.partition("=")
        if not prefer or name.split(".")[0] in Recipe.model_fields:
            overrides.append(item)
            continue
        try:
            weight = float(value)
        except ValueError:
            raise InputError(
                f"{shown(item)} is not a weight: write NAME=WEIGHT, for example harmless=0.7."
            ) from None
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"The weight of {shown(name)} must be finite and at least 0.")
        if name in weights:
            raise InputError(f"--prefer names {shown(name)} twice: give each objective once.")
        weights[name] = weight
    return _normalised(weights), overrides


def _normalised(weights: dict[str, float]) -> dict[str, float]:
    """Weights that add up to one; it is said if they did not."""
    from paretune.errors import InputError
    from paretune.results.text import preference_text

    if not weights:
        return weights
    largest = max(weights.values())
    if not largest:
        raise InputError("--prefer needs a weight above 0.")
    total = math.fsum(weight / largest for weight in weights.values())
    if abs(total * largest - 1) <= 1e-6:
        return weights
    divided = {name: weight / largest / total for name, weight in weights.items()}
    echo(f"The weights are divided by their sum: {preference_text(divided)}.", err=True)
    return divided
