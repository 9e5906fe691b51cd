"""What a recipe of `paretune weigh` says that weighs training sets by `DataWeightingTrainer`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from paretune import yaml_syntax
from paretune.errors import InputError
from paretune.models import BUILT_IN
from paretune.moo.preference import Preference
from paretune.names import shown
from paretune.recipes.points import resolve_points
from paretune.recipes.reading import absolute, read_recipe
from paretune.recipes.schema import Lora, Model
from paretune.recipes.section import (
    NAMED_OPTIONS,
    Command,
    FolderName,
    Location,
    Name,
    Positive,
    Run,
    Section,
    Seeds,
)
from paretune.recipes.written import Written

Trained = Literal["lookahead", "wc_augmented", "wc_penalty"]
"""The methods of `DataWeightingTrainer`."""

TASKS = ("sets", "planted")


class SetsTask(Section):
    """Files of your own: training sets, and validation rows of each criterion."""

    name: Literal["sets"]
    """`sets`."""
    sets: dict[Name, Location] = Field(min_length=2)
    """Per training set a file (.jsonl, .json, .csv, .parquet) or a hub id, whose rows have `prompt`
    and `completion`, or `prompt`, `chosen` and `rejected`, or `text`."""
    criteria: dict[Name, Location] = Field(min_length=2)
    """Per criterion the same, with what a good model would say."""
    test: dict[Name, Location] | None = None
    """Per criterion rows that no training sees, for what a re-training reaches; null takes the
    validation rows that are held out."""

    @model_validator(mode="after")
    def _agree(self) -> "SetsTask":
        if self.test is not None and self.test.keys() != self.criteria.keys():
            raise ValueError("test must have the criteria's names, and each of them")
        return self

    @property
    def objectives(self) -> list[str]:
        return list(self.criteria)


class PlantedTask(Section):
    """Sets whose worth is known, made from the demo's questions and answers."""

    name: Literal["planted"]
    """`planted`."""
    case: Literal["shuffled", "off_topic", "duplicated", "conflicted", "larger"]
    """`shuffled`: answers of other questions; `off_topic`: sums; `duplicated`: a set twice, and one
    of shuffled answers; `conflicted`: what is good for one criterion is bad for the other;
    `larger`: twice as many shuffled answers as right ones."""
    rows: Positive = 48
    """Of a set of plain size."""

    @property
    def objectives(self) -> list[str]:
        return ["plain", "polite"] if self.case == "conflicted" else ["household", "world"]


class MixtureRecipe(Written):
    """Training sets weighed while a language model is trained on them, and trained anew to see."""

    command: ClassVar[Command] = "weigh"

    name: FolderName
    """By default the file's name."""
    description: str = ""
    """One line for `paretune recipes`."""
    task: Annotated[SetsTask | PlantedTask, Field(discriminator="name")]
    """What is weighed."""
    model: Model = Field(default_factory=Model)
    """What is trained."""
    lora: Lora | None = Field(default_factory=Lora)
    """The adapter that is trained; null trains all weights."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `DataWeightingConfig`."""
    methods: Annotated[dict[Trained, dict[str, Any]], NAMED_OPTIONS] = Field(
        default={"lookahead": {}}, min_length=1
    )
    """The methods by name, each with arguments that differ from `train`."""
    preferences: list[Any] = Field(min_length=1)
    """Points, each the criteria's weights."""
    seeds: Seeds = Field(default=[0])
    """Each method runs once with each; of the adapter, the batches and planted sets."""
    retrain_steps: int = Field(default=0, ge=0)
    """Steps of a fresh adapter on sets of equal weight and on the weights that were found, all else
    equal, whose losses are compared; 0 leaves it out."""
    run: Run = Run()
    output_dir: Location
    """The run folder; by default `runs/` and the recipe's name."""

    @field_validator("train")
    @classmethod
    def _free(cls, train: dict[str, Any]) -> dict[str, Any]:
        for name in ("preference", "output_dir", "method", "seed"):
            if name in train:
                raise ValueError(f"{shown(name)} stands elsewhere in the recipe")
        if train.get("logging_steps", 1) != 1:
            raise ValueError("logging_steps is 1 here: the weights of every step are kept")
        return train

    @model_validator(mode="after")
    def _agree(self) -> "MixtureRecipe":
        self.run.refuse_several("data weighting")
        self.model.refuse_shard("data weighting")
        try:
            self.points  # noqa: B018  (raises)
        except InputError as error:
            raise ValueError(f"preferences: {error}") from None
        return self

    @property
    def points(self) -> list[Preference]:
        """The preferences in order."""
        return resolve_points(self.preferences, self.task.objectives)


def resolved(recipe: MixtureRecipe) -> MixtureRecipe:
    """The recipe with preferences as lists of weights, and paths of existing files absolute."""
    task, model = recipe.task, recipe.model
    if isinstance(task, SetsTask):
        files = {"sets": task.sets, "criteria": task.criteria, "test": task.test}
        update = {
            key: found and {name: str(absolute(path)) for name, path in found.items()}
            for key, found in files.items()
        }
        task = task.model_copy(update=update)
    if model.name not in BUILT_IN:
        model = model.model_copy(update={"name": str(absolute(model.name))})
    points = [list(point.weights) for point in recipe.points]
    return recipe.model_copy(update={"task": task, "model": model, "preferences": points})


def read_mixture(
    text: str, source: str, default_name: str, overrides: Sequence[str] = ()
) -> MixtureRecipe:
    """A recipe from YAML text; `source` names where it is from in messages.

    Raises:
        InputError: not YAML, an unknown key, or a value that does not fit.
    """
    return resolved(read_recipe(MixtureRecipe, text, source, default_name, overrides))


def is_mixture(text: str, source: str) -> bool:
    """Whether a recipe of `paretune weigh` is such a one, by its task."""
    raw = yaml_syntax.parse(text, source)
    task = raw.get("task") if isinstance(raw, dict) else None
    return isinstance(task, dict) and task.get("name") in TASKS


def named_files(given: Sequence[str], what: str) -> dict[str, str]:
    """Files by name: that which stands before ``=``, or the file's own without its ending.

    Raises:
        InputError: two of the same name.
    """
    found: dict[str, str] = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not equals or Path(item).exists():
            name, path = Path(item).name.split(".")[0], item
        if name in found:
            raise InputError(
                f"{what} has two files called {shown(name)}: name them, as in {name}_2={item}."
            )
        found[name] = path
    return found
