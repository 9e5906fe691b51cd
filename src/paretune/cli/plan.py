"""``paretune plan``."""

from typing import Annotated

import typer

from paretune.cli.arguments import Overrides, RecipeName
from paretune.cli.output import echo, print_table

TokensPerSecond = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        min=1e-9,
        help="Reckon the time too: tokens that one GPU trains on in a second.",
    ),
]
Tflops = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        min=1e-9,
        help="The same from the 10^12 floating-point operations a second that one GPU sustains.",
    ),
]
Gpus = Annotated[int, typer.Option(metavar="N", min=1, help="How many GPUs share the trainings.")]


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    tokens_per_second: TokensPerSecond = None,
    tflops: Tflops = None,
    gpus: Gpus = 1,
) -> None:
    """Say what a recipe needs before it is started: parameters, memory, tokens, steps, disk, time.

    No weights are loaded; memory is an estimate (docs/guides/scaling.md has its formulas).
    """
    from paretune.cli.progress import quiet_libraries
    from paretune.errors import InputError
    from paretune.experiment.forecast import Rate
    from paretune.models import EMBEDDED
    from paretune.runs.needs import needs, size

    quiet_libraries(EMBEDDED)
    if tokens_per_second and tflops:
        raise InputError("--tokens-per-second and --tflops say the same: give one of them.")
    found = needs(recipe, overrides or [])
    shape = found.shape
    if shape is None:
        echo(f"{found.name}: {found.model}")
    else:
        echo(
            f"{found.name}: {found.model} ({shape.source}), {shape.base:,} parameters, "
            f"{shape.trained:,} trained"
        )
    echo(f"{found.points} points; {size(found.disk)} on disk\n")
    tables = found.tables() if found.work else []
    if found.work and (tokens_per_second or tflops):
        rate = Rate(tokens_per_second, tflops and tflops * 1e12)
        tables.append(found.times(rate, gpus))
    for table in tables:
        print_table(table)
    for remark in found.remarks:
        echo(remark)
    if found.work and (tokens_per_second or tflops):
        echo(
            "Time is that of training alone, without loading, the reference's scores, evaluation "
            "and answers."
        )
