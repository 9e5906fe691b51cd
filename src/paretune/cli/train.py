"""``paretune train``."""

from typing import Annotated

import typer

from paretune.cli.arguments import Fresh, Overrides, RecipeName, resumable


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    prefer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHT ...",
            help="The point to train, e.g. --prefer harmless=0.7 helpful=0.3.",
        ),
    ] = None,
    fresh: Fresh = False,
) -> None:
    """Train one point of a recipe and measure it.

    It goes to a run folder of its own, the recipe's with the weights added, unless output_dir is
    given.
    """
    with resumable():
        from paretune.cli.progress import console_progress
        from paretune.cli.tables import print_front
        from paretune.errors import InputError
        from paretune.recipes import Recipe, load_recipe, with_preference
        from paretune.sweep import run_sweep

        keys, weights = _sort(prefer or [], overrides or [], set(Recipe.model_fields))
        loaded = load_recipe(recipe, keys)
        if weights:
            loaded = with_preference(loaded, weights)
        if len(loaded.points) > 1:
            example = " ".join(f"{name}=..." for name in loaded.data.objectives)
            raise InputError(
                f"The recipe has {len(loaded.points)} points; say which to train with --prefer "
                f"{example}, or train them all with `paretune sweep`."
            )
        if not any(key.startswith("output_dir=") for key in keys):
            folder = f"{loaded.output_dir}-{loaded.points[0].slug()}"
            loaded = loaded.model_copy(update={"output_dir": folder})
        with console_progress(loaded.model.name) as progress:
            front = run_sweep(loaded, fresh=fresh, progress=progress)
        print_front(front, loaded.output_dir)


def _sort(
    prefer: list[str], others: list[str], recipe_keys: set[str]
) -> tuple[list[str], dict[str, float]]:
    """Tell overrides from weights, which follow ``--prefer`` with spaces or commas between."""
    from paretune.errors import InputError

    weights: dict[str, float] = {}
    overrides = []
    for item in [*",".join(prefer).split(","), *others] if prefer else others:
        name, _, value = item.partition("=")
        if not prefer or name.split(".")[0] in recipe_keys:
            overrides.append(item)
            continue
        try:
            weights[name] = float(value)
        except ValueError:
            raise InputError(
                f"'{item}' is not a weight: write NAME=WEIGHT, for example harmless=0.7."
            ) from None
    return overrides, weights
