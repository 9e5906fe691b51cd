"""``paretune evaluate``."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from paretune.cli.arguments import (
    AnswerOverrides,
    Fresh,
    Prefer,
    TrustRemoteCode,
    resumable,
    weights_and_overrides,
)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")],
    overrides: AnswerOverrides = None,
    prefer: Prefer = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    fresh: Fresh = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure the trained points of a run, and draw the front.

    The run's own test results are shown as they are. Another split, or changes to the recipe (such
    as evaluation.n_prompts=100), go to RUN/evaluation-SPLIT. With --prefer one point is measured,
    which goes there too; of a run with one training for every preference, any will do.
    """
    with resumable():
        from paretune.cli.progress import console_progress
        from paretune.cli.tables import print_front
        from paretune.data.splitting import SPLITS
        from paretune.errors import InputError
        from paretune.recipes import load_recipe
        from paretune.recipes.points import as_preference
        from paretune.results.run_folder import saved_recipe
        from paretune.runs.sweep import evaluate_run

        if split not in SPLITS:
            raise InputError(f"There is no split '{split}': use train, validation or test.")
        saved = saved_recipe(run)
        if (run / "cells").is_dir():
            raise InputError(
                f"'{run}' is a comparison, which measures its points itself: run `paretune compare "
                f"{saved}`, or show it with `paretune report {run}`."
            )
        weights, keys = weights_and_overrides(prefer, overrides)
        loaded = load_recipe(saved, keys)
        wanted = None
        if weights:
            wanted = as_preference(weights, loaded.data.objectives, "the preference")
        own = split == "test" and not keys and wanted is None
        if own and fresh:
            raise InputError(
                "--fresh is for another split or changed settings: the run's own test "
                "results stay with the run."
            )
        target = run if own else run / f"evaluation-{split}"
        with console_progress(loaded.model.name) as progress:
            front = evaluate_run(
                loaded,
                run,
                cast(Any, split),
                preference=wanted,
                target=target,
                fresh=fresh,
                progress=progress,
            )
        print_front(front, target)
