"""``paretune report``."""

from pathlib import Path
from typing import Annotated

import typer

from paretune.cli.arguments import TrustRemoteCode, resumable
from paretune.cli.output import echo


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run folders of sweep or compare, such as runs/demo."
        ),
    ],
    base: Annotated[
        bool,
        typer.Option(
            "--base",
            help="Measure the base model first where a run has not: its answers then stand beside "
            "the points'.",
        ),
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write one page of one or several runs: their front, answers, steps, data and settings.

    RUN/report.html is a single file that opens from disk without a network; of several runs, the
    first gets it. RUN/figures gets every figure as PNG and SVG, and every adapter a model card.
    """
    from paretune.extras import require

    require("plotly", "`paretune report`")  # before the base model is measured
    with resumable():
        from paretune.report.page import write_report
        from paretune.results.run_folder import read_runs

        if base:
            from paretune.cli.progress import console_progress
            from paretune.runs.candidates import load_run, measure_base

            for run in read_runs(runs):
                if run.base is None:
                    recipe = load_run(run.path)
                    with console_progress(recipe.model.name) as progress:
                        measure_base(recipe, run.path, progress)
        page = write_report(runs, tell=lambda message: echo(message, err=True))
        echo(f"Open {page}")
