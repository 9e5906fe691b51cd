"""``paretune recipes``."""

from typing import Annotated

import typer

from paretune.cli.output import echo


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe, to be saved and changed.")
    ] = None,
) -> None:
    """List the recipes that ship with paretune, or print one."""
    from paretune import yaml_syntax
    from paretune.errors import InputError
    from paretune.recipes import shipped_recipes

    shipped = shipped_recipes("sweep") | shipped_recipes("compare") | shipped_recipes("weigh")
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
        echo(f"{each:{width}}  {description}")
