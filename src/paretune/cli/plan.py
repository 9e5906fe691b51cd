"""``paretune plan``."""

from paretune.cli.arguments import Overrides, RecipeName
from paretune.cli.output import echo, print_table


def plan(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Say what a recipe needs before it is started: parameters, memory, tokens, steps, disk.

    No weights are loaded; memory is an estimate (docs/guides/scaling.md has its formulas).
    """
    from paretune.runs.needs import needs, size

    found = needs(recipe, overrides or [])
    shape = found.shape
    echo(
        f"{found.name}: {found.model} ({shape.source}), {shape.base:,} parameters, "
        f"{shape.trained:,} trained"
    )
    echo(f"{found.points} points; {size(found.disk)} on disk\n")
    for table in found.tables():
        print_table(table)
    for remark in found.remarks:
        echo(remark)
