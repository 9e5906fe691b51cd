"""``paretune export``."""

from pathlib import Path
from typing import Annotated

import typer

from paretune.cli.arguments import Method, TrustRemoteCode
from paretune.cli.output import echo


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")],
    to: Annotated[Path | None, typer.Option(help="Where to; by default RUN/export.")] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Also write every point as a model by itself.")
    ] = False,
    base: Annotated[
        bool | None,
        typer.Option(help="Also write the base model; by default if it has no name on the hub."),
    ] = None,
    method: Method = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Lay a run's adapters out for vLLM and PEFT, with a manifest and the commands.

    The folder can be used where paretune is not installed.
    """
    from paretune.cli.progress import quiet_libraries
    from paretune.serving.choose import open_run
    from paretune.serving.export import export_run

    choices = open_run(run, method=method)
    quiet_libraries(choices.recipe.model.name)
    target = run / "export" if to is None else to
    layout = export_run(
        choices,
        target,
        merge=merge,
        base=base,
        report=lambda what: echo(f"writing {what}", err=True),
    )
    echo(f"In {target}: manifest.json, README.md, {len(choices.candidates)} points.")
    echo(f"\ncd {target}\n{layout.serve_line()}")
