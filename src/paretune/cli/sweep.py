"""``paretune sweep``."""

from paretune.cli.arguments import Fresh, Overrides, RecipeName, TrustRemoteCode, resumable


def sweep(
    recipe: RecipeName,
    overrides: Overrides = None,
    fresh: Fresh = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train every point of a recipe, measure it, and draw the front.

    A sweep that was stopped resumes where it stopped when the same command is given again.
    """
    with resumable():
        from paretune.cli.progress import console_progress
        from paretune.cli.tables import print_front
        from paretune.recipes import load_recipe
        from paretune.runs.sweep import run_sweep

        loaded = load_recipe(recipe, overrides or [])
        with console_progress(loaded.model.name) as progress:
            front = run_sweep(loaded, fresh=fresh, progress=progress)
        print_front(front, loaded.output_dir)
