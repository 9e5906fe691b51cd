"""``paretune train``."""

from pathlib import Path

from paretune.cli.arguments import (
    Fresh,
    Overrides,
    Prefer,
    RecipeName,
    TrustRemoteCode,
    resumable,
    weights_and_overrides,
)
from paretune.cli.workers import Job, shared_out


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    prefer: Prefer = None,
    fresh: Fresh = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train one point of a recipe and measure it.

    It goes to a run folder of its own, the recipe's with the weights added, unless output_dir is
    given.
    """
    with resumable():
        from paretune.cli.progress import console_progress
        from paretune.cli.tables import print_front
        from paretune.errors import InputError
        from paretune.recipes import load_recipe, with_preference
        from paretune.runs.sweep import run_folder, run_sweep

        weights, keys = weights_and_overrides(prefer, overrides)
        loaded = load_recipe(recipe, keys)
        if weights:
            loaded = with_preference(loaded, weights)
        if len(loaded.points) > 1:
            example = " ".join(f"{name}=..." for name in loaded.data.objectives)
            raise InputError(
                f"The recipe has {len(loaded.points)} points; say which to train with --prefer "
                f"{example}, or train them all with `paretune sweep`."
            )
        if not any(key.startswith("output_dir=") for key in keys):
            folder = f"{loaded.output_dir}-{loaded.points[0].slug()}"
            loaded = loaded.model_copy(update={"output_dir": folder})
        job = Job(
            ["train", recipe, *(f"--prefer={each}" for each in prefer or []), *(overrides or [])],
            lambda: run_folder(loaded, Path(loaded.output_dir)),
            loaded.run,
            1,
            fresh,
        )
        if shared_out(job, None, None):
            return
        with console_progress(loaded.model.name) as progress:
            front = run_sweep(loaded, fresh=fresh, progress=progress)
        print_front(front, loaded.output_dir)
