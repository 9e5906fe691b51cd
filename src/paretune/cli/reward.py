"""``paretune reward``."""

from typing import TYPE_CHECKING, Any

import typer

from paretune.cli.arguments import Fresh, Overrides, RecipeName, TrustRemoteCode, resumable

if TYPE_CHECKING:
    from paretune.results.table import Table

reward = typer.Typer(no_args_is_help=True, help="Reward models.")


@reward.callback()
def _group() -> None:
    """Reward models."""


@reward.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    fresh: Fresh = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train a reward model on each objective's pairs, and measure it on held-out prompts.

    They go to the recipe's run folder, below rewards/. Training that was stopped resumes when
    the same command is given again.
    """
    with resumable():
        from paretune.cli.output import console, print_table
        from paretune.cli.progress import console_progress
        from paretune.files import main_process
        from paretune.runs.reward import FOLDER, load_reward_recipe, run_rewards

        loaded = load_reward_recipe(recipe, overrides or [])
        with console_progress(loaded.reward.model or loaded.model.name) as progress:
            records = run_rewards(loaded, fresh=fresh, progress=progress)
        if main_process():
            terminal = console()
            print_table(_table(records), terminal)
            terminal.print(f"In {loaded.output_dir}/{FOLDER}", highlight=False, markup=False)


def _table(records: dict[str, dict[str, Any]]) -> "Table":
    """One row an objective."""
    from paretune.results.table import Column, Table, left, numbers

    columns = [left("objective"), *numbers(["pairs", "steps"])]
    columns += [Column("validation", ".1%"), Column("test", ".1%")]
    columns += numbers(["mean", "std"], ".3f")
    rows = []
    for name, record in records.items():
        accuracy, scale = record["accuracy"], record["normalisation"]
        row = [name, record["pairs"], record["steps"], accuracy["validation"], accuracy["test"]]
        rows.append([*row, scale["mean"], scale["std"]])
    title = "reward models: accuracy on held-out pairs, scores of the training answers"
    return Table(columns, rows, title)
