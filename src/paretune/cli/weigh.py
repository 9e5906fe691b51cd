"""``paretune weigh``."""

from typing import Annotated

import typer

from paretune.cli.arguments import Fresh, Overrides, RecipeName, TrustRemoteCode, resumable
from paretune.cli.output import echo
from paretune.cli.workers import Workers, run_workers

Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Run only the cells whose names match, e.g. 'moml-*' or '*-seed0'; may be repeated.",
    ),
]


def weigh(
    recipe: RecipeName,
    overrides: Overrides = None,
    only: Only = None,
    workers: Workers = 1,
    fresh: Fresh = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Learn how much each training set should weigh, with every method of a recipe.

    A run that was stopped resumes when the same command is given again; several processes may
    share a run folder, each with cells of its own (--only).
    """
    with resumable():
        from paretune.cli.progress import console_progress
        from paretune.recipes.data_weighting import load_weigh_recipe
        from paretune.recipes.language_model import LanguageModelTask

        loaded = load_weigh_recipe(recipe, overrides or [])
        if workers > 1:
            if fresh:
                from paretune.data_weighting.run import weigh_folder

                with weigh_folder(loaded).session(fresh=True):
                    pass
            run_workers(
                workers,
                ["weigh", recipe, *(overrides or []), *(f"--only={each}" for each in only or [])],
            )
            return
        model = loaded.task.model.name if isinstance(loaded.task, LanguageModelTask) else None
        with console_progress(model) as progress:
            from paretune.data_weighting.run import run_weighing

            summary = run_weighing(loaded, only=only or [], fresh=fresh, progress=progress)
        failed = f", {len(summary.failed)} failed" if summary.failed else ""
        missing = f", {summary.missing} still to run" if summary.missing else ""
        echo(f"{len(summary.done)} cells done{failed}{missing}.")
        echo(f"In {loaded.output_dir}: weigh.md, weigh.json, weigh_*.png, cells/")
