"""``paretune evaluate``."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from paretune.cli.arguments import Fresh, Overrides, TrustRemoteCode, resumable


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")],
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    fresh: Fresh = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure the trained points of a run, and draw the front.

    The run's own test results are shown as they are. Another split, or changes to the recipe (such
    as evaluation.n_prompts=100), go to RUN/evaluation-SPLIT.
    """
    with resumable():
        from paretune.cli.progress import console_progress
        from paretune.cli.tables import print_front
        from paretune.data.splitting import SPLITS
        from paretune.errors import InputError
        from paretune.recipes import load_recipe
        from paretune.runs.sweep import evaluate_run

        if split not in SPLITS:
            raise InputError(f"There is no split '{split}': use train, validation or test.")
        saved = run / "recipe.yaml"
        if not saved.is_file():
            raise InputError(f"'{run}' is not a run folder: it has no recipe.yaml.")
        loaded = load_recipe(saved, overrides or [])
        own = split == "test" and not overrides
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
                target=target,
                fresh=fresh,
                progress=progress,
            )
        print_front(front, target)
