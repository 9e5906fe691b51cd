"""``paretune push``."""

from pathlib import Path
from typing import Annotated

import typer

from paretune.cli.arguments import Method
from paretune.cli.output import echo


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")],
    repo: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="The repository, made if it is not there.")
    ],
    each: Annotated[
        bool, typer.Option("--each", help="A repository for each point, called OWNER/NAME-<point>.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="New repositories are private without it.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="The base model's name on the hub, where the run has it from a folder.",
        ),
    ] = None,
    method: Method = None,
) -> None:
    """Put a run's points on the Hugging Face hub: weights, model cards and the front.

    One repository with a folder for each point, private unless --public is given. Recipe, logs,
    data and answers stay here. Given again, the command replaces what it has put there.
    """
    from paretune.cli.progress import quiet_libraries
    from paretune.runs.push import push_run

    quiet_libraries(str(run))
    pushed = push_run(
        run,
        repo,
        each=each,
        public=public,
        method=method,
        base=base,
        report=lambda what: echo(what, err=True),
    )
    for found in pushed:
        who = "private" if found.private else "public"
        echo(f"{found.repo} ({who}): {found.files} files, {found.size / 1e6:.1f} MB, {found.url}")
