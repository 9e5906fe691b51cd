"""``paretune recipes``."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from paretune.cli.output import console, echo


class Kind(StrEnum):
    """What a recipe is for: the command that reads it; `mixture` is the other kind of `weigh`."""

    sweep = "sweep"
    compare = "compare"
    weigh = "weigh"
    mixture = "mixture"


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="Print this recipe, to be saved and changed; with --keys, a section."),
    ] = None,
    keys: Annotated[
        bool,
        typer.Option("--keys", help="List the keys of a recipe, or of one section: --keys method."),
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a recipe, for editors.")
    ] = False,
    kind: Annotated[
        Kind,
        typer.Option(
            help="With --keys and --schema: recipes of which command; mixture: of paretune weigh, "
            "with the task sets or planted."
        ),
    ] = Kind.sweep,
) -> None:
    """List the recipes that ship with paretune, each after its command, or print one; or say which
    keys a recipe has."""
    from paretune import yaml_syntax
    from paretune.errors import InputError
    from paretune.recipes import shipped_recipes
    from paretune.recipes.reading import COMMANDS

    if keys or schema:
        _describe(kind, name, schema)
        return
    found = {command: shipped_recipes(command) for command in COMMANDS}
    commands = {name: command for command in COMMANDS for name in found[command]}
    shipped = {name: text for texts in found.values() for name, text in texts.items()}
    if name is not None:
        if name not in shipped:
            raise InputError(
                f"No recipe '{name}' ships with paretune; `paretune recipes` lists them."
            )
        echo(shipped[name], nl=False)
        return
    width = max(len(each) for each in shipped)
    for each, text in shipped.items():
        description = yaml_syntax.parse(text, f"recipe '{each}'").get("description", "")
        echo(f"{commands[each]:7}  {each:{width}}  {description}")


def _describe(kind: Kind, section: str | None, schema: bool) -> None:
    import json

    from paretune.baselines.recipe import CompareRecipe
    from paretune.recipes.data_weighting import WeighRecipe
    from paretune.recipes.mixture import MixtureRecipe
    from paretune.recipes.reference import json_schema, key_table, keys_of
    from paretune.recipes.schema import Recipe

    kinds: dict[Kind, Any] = {
        Kind.sweep: Recipe,
        Kind.compare: CompareRecipe,
        Kind.weigh: WeighRecipe,
        Kind.mixture: MixtureRecipe,
    }
    recipe = kinds[kind]
    if schema:
        echo(json.dumps(json_schema(recipe), indent=2))
    else:
        console().print(key_table(keys_of(recipe, section)).to_rich())
