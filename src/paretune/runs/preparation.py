"""Before points are trained: the recipe checked, its data loaded, and both told to the manifest."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.data import LOADERS
from paretune.data.loading import hub_id
from paretune.data.messages import prompt_key
from paretune.data.rows import records
from paretune.data.splitting import Split, split_by_prompt
from paretune.files import main_process
from paretune.losses import plain_loss
from paretune.models import asks_for_date, check_model
from paretune.moo.weightings import ClampOptions
from paretune.results.front import FrontPoint
from paretune.results.run_folder import read_manifest
from paretune.runs.folder import RunFolder
from paretune.runs.identity import RecipeIdentity, check_ground
from paretune.runs.plan import plan
from paretune.runs.steerable import conditioned

if TYPE_CHECKING:
    from paretune.data import PreferenceData
    from paretune.recipes.schema import Recipe

logger = logging.getLogger(__name__)


def check_recipe(recipe: "Recipe") -> "PreferenceData":
    """See, without loading the model's weights, that a recipe can be run; its data.

    Raises:
        InputError: arguments, scorers, model or data that are wrong or not there.
    """
    recipe.model.check_place()  # at once, and torch takes seconds
    from paretune.experiment.reward_sources import check_sources
    from paretune.experiment.setup import load_data, training_arguments
    from paretune.experiment.tracking import check_trackers

    run = Path(recipe.output_dir)
    first = plan(recipe, run)[0]
    method = conditioned(recipe)
    if method is not None:
        method.training_arguments(recipe, first.seed, run)
    else:
        training_arguments(recipe, first.preference, first.seed, run)
    check_trackers(recipe.train.get("report_to"))
    check_sources(recipe)
    check_model(recipe.model.name, recipe.model.trust_remote_code, recipe.model.revision)
    data = load_data(recipe.data)
    split_by_prompt(data, recipe.data.split, recipe.data.seed)  # may complain
    return data


def check_sampling(recipe: "Recipe", data: "PreferenceData") -> None:
    """See that joint rows, if they are asked for, can be made of the training split.

    Raises:
        InputError: no prompt has a pair of each objective with weight.
    """
    if recipe.train.get("sampling") != "joint":
        return
    from paretune.data.sampling import no_joint_rows

    train = split_by_prompt(data, recipe.data.split, recipe.data.seed)["train"]
    prompts = {
        name: {prompt_key(row["prompt"]) for row in records(table.select_columns("prompt"))}
        for name, table in train.pairs.items()
    }
    for point in recipe.points:
        if not set.intersection(*(prompts[name] for name in point.live)):
            raise no_joint_rows()


def load_splits(
    recipe: "Recipe",
    folder: RunFolder,
    source: Path | None = None,
    data: "PreferenceData | None" = None,
) -> "Mapping[Split, PreferenceData]":
    """The recipe's data, seen to be that of earlier sessions, with its counts in the manifest.

    Args:
        source: The run whose points are measured, if it is not the folder itself.
        data: The recipe's, if it is loaded already.

    Raises:
        InputError: data that is missing or wrong, or has changed; or a base model that has.
    """
    from paretune.experiment.ground import data_ground, machine, model_ground
    from paretune.experiment.reward_sources import reward_ground
    from paretune.experiment.setup import load_data

    data = load_data(recipe.data) if data is None else data
    splits = split_by_prompt(data, recipe.data.split, recipe.data.seed)
    if main_process():
        ground = data_ground(data) | reward_ground(recipe)
        ground |= model_ground(recipe.model.name, recipe.model.revision)
        if source is not None and source != folder.path:
            changed = {key.split(".")[0] for key in RecipeIdentity(recipe).differences(source)}
            section = {
                "data": "data",
                **dict.fromkeys(("model", "tokenizer", "generation"), "model"),
            }
            same = {
                what: ground[what] for what in ground if section.get(what, "rewards") not in changed
            }
            check_ground(source, read_manifest(source), same)
        folder.stand_on(ground)
        folder.note(
            recipe=recipe.name,
            seeds=recipe.sweep.seeds,
            data={"all": data.counts, **{k: v.counts for k, v in splits.items()}},
            normalisation=_normalisation(recipe),
            losses={name: plain_loss(loss) for name, loss in recipe.losses.items()},
            revisions=_revisions(recipe, ground),
        )
        folder.note(machine())
        _tell_date(recipe, folder)
    return splits


def _revisions(recipe: "Recipe", ground: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The commits of base model and data, as far as they are of the hub."""
    from paretune.experiment.ground import data_commit

    given = recipe.data.path
    name = hub_id(LOADERS[recipe.data.loader]) if given is None else None
    found = {
        "model": ground.get("model", {}).get("commit"),
        "data": data_commit(name, recipe.data.revision),
    }
    return {what: commit for what, commit in found.items() if commit}


def _tell_date(recipe: "Recipe", folder: RunFolder) -> None:
    """Warn where the prompts of this run will not be those of one that is begun tomorrow."""
    model = recipe.model
    if model.date is None and asks_for_date(model.name, model.template_variables, model.revision):
        logger.warning(
            "The chat template of %s prints the date. In this run it is %s, the day on which it "
            "was begun, whenever it is resumed; a run of another day has other prompts. To have "
            "the same, set model.date=%s.",
            model.name,
            folder.started(),
            folder.started(),
        )


def _normalisation(recipe: "Recipe") -> dict[str, Any]:
    if recipe.sweep.placement == "gap" and isinstance(recipe.method, ClampOptions):
        return dict.fromkeys(("ideal", "nadir"), "from the ends' validation losses")
    return {key: getattr(recipe.method, key, None) for key in ("ideal", "nadir")}


def note_left_out(points: Sequence[FrontPoint], folder: RunFolder) -> None:
    """Tell the manifest what trainings left out of the training split or cut, and of which rows.

    Joint rows depend on the preference, an objective of weight zero having no say: the most of any
    point counts, and ``rows`` has the number of each point where these differ.
    """
    found: dict[str, dict[str, int]] = {}
    for point in points:
        for objective, became in (point.training.get("pairs") or {}).items():
            for key in ("too_long", "equal", "cut", "unmatched"):
                if became.get(key):
                    most = found.setdefault(key, {})
                    most[objective] = max(became[key], most.get(objective, 0))
    counts = folder.manifest.get("data") or {}
    train = {**counts.get("train", {}), **found}
    if train != counts.get("train", {}):
        folder.note(data={**counts, "train": train})
    rows = {p.folder: p.training["rows"] for p in points if "rows" in p.training}
    if len(set(rows.values())) > 1 and rows != folder.manifest.get("rows"):
        logger.warning(
            "Points train on %d to %d rows: joint rows are those on which all objectives with "
            "weight have a pair (train.sampling=independent takes all pairs).",
            min(rows.values()),
            max(rows.values()),
        )
        folder.note(rows=rows)


def note_skipped(points: Iterable[FrontPoint], folder: RunFolder) -> None:
    """Tell the manifest of the steps that trainings skipped, by the folders of the points."""
    found = {point.folder: point.skipped_steps for point in points if point.skipped_steps}
    if found != folder.manifest.get("skipped_steps", {}):
        folder.note(skipped_steps=found)
