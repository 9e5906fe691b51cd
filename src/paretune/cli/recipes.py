"""``paretune recipes``."""

from typing import Annotated

import typer

from paretune.cli.output import echo


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe, to be saved and changed.")
    ] = None,
) -> None:
    """List the recipes that ship with paretune, each after its command, or print one."""
    from paretune import yaml_syntax
    from paretune.errors import InputError
    from paretune.recipes import shipped_recipes
    from paretune.recipes.reading import COMMANDS

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
