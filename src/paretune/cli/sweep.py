"""``paretune sweep``."""

from pathlib import Path

from paretune.cli.arguments import Fresh, Overrides, RecipeName, TrustRemoteCode, resumable
from paretune.cli.workers import Job, Ray, Workers, shared_out


def sweep(
    recipe: RecipeName,
    overrides: Overrides = None,
    workers: Workers = None,
    ray: Ray = None,
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
        from paretune.runs.plan import count_points
        from paretune.runs.sweep import run_folder, run_sweep

        loaded = load_recipe(recipe, overrides or [])
        job = Job(
            ["sweep", recipe, *(overrides or [])],
            lambda: run_folder(loaded, Path(loaded.output_dir)),
            loaded.run,
            count_points(loaded),
            fresh,
        )
        if shared_out(job, workers, ray):
            return
        with console_progress(loaded.model.name) as progress:
            front = run_sweep(loaded, fresh=fresh, progress=progress)
        print_front(front, loaded.output_dir)
