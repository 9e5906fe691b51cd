"""``paretune export``."""

from pathlib import Path
from typing import Annotated

import typer

from paretune.cli.arguments import Method, TrustRemoteCode, weights_and_overrides
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
    prefer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHT,...",
            help="Export what serves this preference, e.g. --prefer harmless=7,helpful=3; may be "
            "given several times. By default all points.",
        ),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            min=2,
            help="Of one adapter for all preferences: export an even grid, K along an edge.",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(metavar="R", min=1, help="Lower adapters to this rank, by their SVD."),
    ] = None,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Also write the adapters as llama.cpp reads them.")
    ] = False,
    method: Method = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Lay a run's adapters out for vLLM, PEFT and llama.cpp, with a manifest and the commands.

    The folder can be used where paretune is not installed.
    """
    from paretune.cli.progress import quiet_libraries
    from paretune.serving.choose import open_run
    from paretune.serving.export import export_run
    from paretune.serving.fold import at_preferences

    wanted = [weights_and_overrides([each], None)[0] for each in prefer or ()]
    choices = at_preferences(open_run(run, method=method), wanted, points)
    quiet_libraries(choices.recipe.model.name)
    target = run / "export" if to is None else to
    layout = export_run(
        choices,
        target,
        merge=merge,
        base=base,
        rank=rank,
        gguf=gguf,
        report=lambda what: echo(f"writing {what}", err=True),
    )
    echo(f"In {target}: manifest.json, README.md, {len(layout.choices.candidates)} points.")
    echo(f"\ncd {target}\n{layout.serve_line()}")
