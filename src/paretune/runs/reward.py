"""``paretune reward train``: the reward models of a recipe's objectives, in its run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.data.splitting import split_by_prompt
from paretune.files import main_process, read_object
from paretune.models import check_model, check_place
from paretune.progress import Progress, Silent
from paretune.recipes.load import dated, load_recipe
from paretune.runs.folder import RunFolder
from paretune.runs.identity import SettingsIdentity

if TYPE_CHECKING:
    from paretune.data import PreferenceData
    from paretune.recipes.schema import Recipe

FOLDER = "rewards"
RECORD = "reward.json"
_SECTIONS = ("model", "lora", "data", "reward")


def load_reward_recipe(name: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
    """The recipe of reward models: `load_recipe`, but without adapters nothing is quantised.

    ``lora=null`` trains all weights of the reward model, whatever the recipe quantises for its
    adapters.

    Raises:
        InputError: as `load_recipe`.
    """
    from paretune import yaml_syntax

    keys = (each.partition("=") for each in overrides)
    whole = any(
        key.strip() == "lora" and yaml_syntax.parse(value, "lora") is None for key, _, value in keys
    )
    return load_recipe(name, ["model.quantization=null", *overrides] if whole else overrides)


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
    folder = RunFolder(
        Path(recipe.output_dir) / FOLDER,
        SettingsIdentity("settings.json", recipe.model_dump(mode="json", include=set(_SECTIONS))),
        mark=RECORD,
        contents=("*",),
        begun=tuple(recipe.data.objectives),
        holds="reward models of other settings",
        advice="give output_dir=... for a new run, or --fresh to delete them",
    )
    objectives = recipe.data.objectives
    folder.check(fresh=fresh)
    unfinished = fresh or not all(map(folder.finished, objectives))
    data = _check(recipe, folder) if unfinished else None  # before anything is written or deleted
    with folder.session(fresh=fresh):
        finished = [name for name in objectives if folder.finished(name)]
        if len(finished) == len(objectives):
            return {name: read_object(folder.path / name / RECORD) for name in objectives}
        data = _check(recipe, folder) if data is None else data
        records = _train(recipe, folder, data, finished, progress)
        folder.publish({})
        return records


def _check(recipe: "Recipe", folder: RunFolder) -> "PreferenceData":
    """See, without loading the model's weights, that there is what is trained on; the data.

    Raises:
        InputError: arguments, model or data that are wrong or not there.
    """
    name, revision = _base(recipe)
    # At once, and torch takes seconds.
    check_place(name, recipe.model.trust_remote_code, recipe.model.quantization)
    from paretune.experiment.reward import reward_arguments
    from paretune.experiment.setup import load_data

    reward_arguments(recipe, folder.path)
    check_model(name, recipe.model.trust_remote_code, revision)
    data = load_data(recipe.data)
    split_by_prompt(data, recipe.data.split, recipe.data.seed)  # may complain
    return data


def _train(
    recipe: "Recipe",
    folder: RunFolder,
    data: "PreferenceData",
    finished: Sequence[str],
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    from paretune.experiment.ground import data_ground, model_ground
    from paretune.experiment.reward import train_reward

    if main_process():
        folder.stand_on(data_ground(data) | model_ground(*_base(recipe)))
        folder.note(recipe=recipe.name, data={"all": data.counts})
    splits = split_by_prompt(data, recipe.data.split, recipe.data.seed)
    recipe = dated(recipe, folder.started())
    progress.begin(recipe.data.objectives, len(finished))
    records = {}
    for name in recipe.data.objectives:
        if name not in finished:
            progress.point(name)
        records[name] = train_reward(recipe, name, splits, folder.path / name, progress.phase)
    progress.end()
    return records


def _base(recipe: "Recipe") -> tuple[str, str | None]:
    """Name and revision of the model that becomes a reward model."""
    if recipe.reward.model is not None:
        return recipe.reward.model, None
    return recipe.model.name, recipe.model.revision
