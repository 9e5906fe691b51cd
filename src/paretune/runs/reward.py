"""``paretune reward train``: the reward models of a recipe's objectives, in its run folder."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.errors import InputError
from paretune.files import main_process, read_json, write_json
from paretune.progress import Progress, Silent

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe

FOLDER = "rewards"
_SECTIONS = ("model", "lora", "data", "reward")


def run_rewards(
    recipe: "Recipe", *, fresh: bool = False, progress: Progress | None = None
) -> dict[str, dict[str, Any]]:
    """Train the reward model of every objective that has none yet, in ``<output_dir>/rewards``.

    Args:
        fresh: Delete reward models that are there already.

    Returns:
        Per objective, what `~paretune.experiment.reward.train_reward` returns.

    Raises:
        InputError: the folder holds reward models of other settings, or recipe, model and data do
            not fit together.
    """
    progress = progress or Silent()
    folder = Path(recipe.output_dir) / FOLDER
    _claim(recipe, folder, fresh)
    objectives = recipe.data.objectives
    finished = [name for name in objectives if (folder / name / "reward.json").exists()]
    if len(finished) == len(objectives):
        return {name: read_json(folder / name / "reward.json") for name in objectives}

    from paretune.data.splitting import split_by_prompt
    from paretune.experiment.reward import reward_arguments, train_reward
    from paretune.experiment.setup import load_data

    reward_arguments(recipe, folder)  # may complain
    splits = split_by_prompt(load_data(recipe.data), recipe.data.split, recipe.data.seed)
    progress.begin(objectives, len(finished))
    records = {}
    for name in objectives:
        if name not in finished:
            progress.point(name)
        records[name] = train_reward(recipe, name, splits, folder / name, progress.phase)
    progress.end()
    return records


def _claim(recipe: "Recipe", folder: Path, fresh: bool) -> None:
    """Make the folder these settings' own, or see that it is."""
    saved = folder / "settings.json"
    if not main_process():
        return
    if fresh and saved.exists():
        shutil.rmtree(folder)
    settings = recipe.model_dump(mode="json", include=set(_SECTIONS))
    if saved.exists():
        other = read_json(saved)
        if differ := [name for name in _SECTIONS if settings[name] != other.get(name)]:
            raise InputError(
                f"'{folder}' holds reward models of other settings ({', '.join(differ)}): give "
                "output_dir=... for a new run, or --fresh to delete them."
            )
        return
    try:
        write_json(saved, settings)
    except OSError as error:
        raise InputError(f"The folder '{folder}' cannot be written: {error}.") from error
