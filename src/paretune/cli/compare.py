"""``paretune compare``."""

import typer

from paretune.cli.arguments import Fresh, Overrides, RecipeName, TrustRemoteCode, resumable
from paretune.cli.output import echo
from paretune.cli.workers import Job, Ray, Workers, shared_out


def compare(
    recipe: RecipeName,
    overrides: Overrides = None,
    workers: Workers = None,
    ray: Ray = None,
    fresh: Fresh = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Run several methods on the same data, budget and metrics, and compare their fronts.

    A comparison that was stopped resumes where it stopped; methods, seeds and points can be added
    to the recipe later. If a method fails the others continue, and the exit code is 1.
    """
    with resumable():
        from paretune.baselines.recipe import load_comparison
        from paretune.cli.progress import console_progress
        from paretune.runs.compare import compare_folder, run_compare

        loaded = load_comparison(recipe, overrides or [])
        job = Job(
            ["compare", recipe, *(overrides or [])],
            lambda: compare_folder(loaded),
            loaded.run,
            sum(len(entry.seeds or loaded.sweep.seeds) for entry in loaded.methods),
            fresh,
        )
        if shared_out(job, workers, ray):
            return
        with console_progress(loaded.model.name) as progress:
            comparison = run_compare(loaded, fresh=fresh, progress=progress)
        from paretune.cli.output import print_table
        from paretune.cli.tables import comparison_table
        from paretune.report.tables import spacings

        print_table(comparison_table(comparison))
        if (dials := spacings(comparison)) is not None:
            print_table(dials)
        echo(f"\nIn {loaded.output_dir}: compare.md, compare.png, compare.json, cells/")
    for cell in comparison.failures:
        echo(f"failed: {cell.title}, seed {cell.seed}: {cell.failure}", err=True)
    if comparison.failures:
        raise typer.Exit(1)
