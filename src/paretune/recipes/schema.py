"""What a recipe says: one class a section, one documented field a key.

The classes check types and ranges of single keys and what can be checked without loading anything;
`paretune.recipes.load` turns their complaints into one sentence. Nothing here imports torch.
"""

import re
from collections import ChainMap
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from paretune.data import LOADERS
from paretune.data.loading import RATING_OPTIONS, LoaderOptions
from paretune.errors import InputError
from paretune.losses import DPO, LOSSES, PreferenceLoss, is_single_loss, losses_by_objective
from paretune.models import EMBEDDED, check_place
from paretune.moo.placement import ENDS
from paretune.moo.preference import Preference
from paretune.moo.weightings import WEIGHTINGS, ClampOptions, Weighting
from paretune.names import name_fault, shown
from paretune.options import nearest
from paretune.recipes.choice import Chosen, OneOf
from paretune.recipes.dial import ConditionedOptions
from paretune.recipes.points import Sweep, resolve_points
from paretune.recipes.rewards import RewardSource, RewardTraining
from paretune.recipes.section import FolderName, Location, Positive, Run, Section, Seed, Shares
from paretune.recipes.written import Written

MAX_SLUG = 200
"""Of a point, in letters: what a folder's name may have, with room for a seed and a suffix."""

_LOADER_KEYS = ("style", *RATING_OPTIONS)  # of several loaders
_NAME = re.compile(r"[A-Za-z0-9_]+")


class Model(Section):
    """The model to align."""

    name: Location = EMBEDDED
    """`smollm2-135m-instruct` (embedded), `paretune-toy` (comes with paretune, to try commands), a
    folder, or an id on the Hugging Face hub."""
    revision: str | None = None
    """Commit, tag or branch of a model on the hub; null is what is newest."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the weights; `auto`: bfloat16 on a GPU that has it, else float32."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Load the base in 8 or 4 bit; needs bitsandbytes and `lora`. 4 bit trains on GPUs alone."""
    trust_remote_code: bool = False
    """The model needs code that comes with its checkpoint; it runs where the command has
    `--trust-remote-code` too."""
    template_variables: dict[str, Any] = Field(default_factory=dict)
    """Values the chat template reads, such as `{enable_thinking: false}` of Qwen3."""
    date: str | None = None
    """The day, as 2026-01-31, that a chat template is told which asks for it (Llama 3); null is the
    day on which the run was begun, in all its sessions."""
    shard: bool = False
    """Of several processes each holds its part of the base (FSDP2) and all of the adapter, which
    `lora` adds."""

    @field_validator("date")
    @classmethod
    def _day(cls, date: str | None) -> str | None:
        if date is not None:
            datetime.fromisoformat(date)
        return date

    @field_validator("template_variables")
    @classmethod
    def _variables(cls, variables: dict[str, Any]) -> dict[str, Any]:
        for name in variables:
            if not name.isidentifier():
                raise ValueError(f"{shown(name)} is not a variable's name")
        return variables

    def refuse_shard(self, what: str) -> None:
        """Raise ValueError where the weights are to be divided among processes."""
        if self.shard:
            raise ValueError(f"model.shard is not for {what}: set it to false")

    def check_place(self) -> None:
        """See at once, before torch loads, that the model's place and needed packages are there.

        Raises:
            InputError: see `paretune.models.check_place`.
        """
        check_place(self.name, self.trust_remote_code, self.quantization)


class Lora(Section):
    """The adapter that is trained."""

    r: Positive = 8
    """Rank."""
    alpha: Positive = 32
    """Scale; updates are multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: str | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Layers that get one, by name, or a regular expression for their whole paths; `all-linear` is
    every linear layer except the head."""

    @field_validator("target_modules")
    @classmethod
    def _expression(cls, modules: str | list[str]) -> str | list[str]:
        if isinstance(modules, str):
            try:
                re.compile(modules)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"{shown(modules)} is no regular expression ({error}): give one, or a list of "
                    "layers' names"
                ) from None
        if not all(modules) or not modules:
            raise ValueError("a layer's name must not be empty")
        return modules


class Data(Section):
    """The preference pairs of each objective, and how they are split.

    Options that a loader has beyond these stand here, too.
    """

    model_config = ConfigDict(extra="allow")

    loader: Annotated[str, OneOf(LOADERS)]
    """Which reader: a published data set, `pairs` or `ratings` for files of your own."""
    objectives: list[str] = Field(min_length=1)
    """The objectives, in the order in which preferences list their weights."""
    path: Location | dict[str, Location] | None = None
    """A file (.jsonl, .json, .csv, .parquet) or a hub id, or one for each objective; null is the
    published data set."""
    revision: str | None = None
    """Commit or tag of the data set on the hub."""
    bad_rows: Literal["error", "skip"] = "error"
    """Stop at a row that cannot be used, or leave it out and count it."""
    style: Literal["text", "chat", "dialogue"] | None = None
    """How prompts that are strings are read: plain text, one user message, or
    `Human: ... Assistant: ...` turns; null is the loader's own way."""
    ties: Literal["drop", "first"] | None = None
    """Equal ratings: leave the pair out (null too), or take the first response as better."""
    pairing: Literal["extremes", "all"] | None = None
    """Pairs of rated responses: highest against lowest (null too), or every two that differ."""
    min_difference: float | None = Field(default=None, ge=0)
    """Ratings that differ by less are equal."""
    lower_is_better: list[str] | None = None
    """Objectives whose low ratings are the good ones."""
    split: Shares = Field(default=[0.8, 0.1, 0.1])
    """Shares of training, validation and test data; all pairs of a prompt fall on one side."""
    seed: Seed = 0
    """Of the split."""

    @field_validator("objectives")
    @classmethod
    def _names(cls, names: list[str]) -> list[str]:
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{shown(name)} must consist of letters, digits and underscores")
            if fault := name_fault(name):
                raise ValueError(fault)
        if len(set(names)) < len(names):
            raise ValueError("an objective is named twice")
        return names

    @model_validator(mode="after")
    def _options(self) -> "Data":
        name, known = self.loader, LoaderOptions.of(LOADERS[self.loader])
        for key in (*_LOADER_KEYS, *self.own):
            if getattr(self, key) is not None and key not in known.options:
                if key in self.own and key not in self.more_keys():
                    raise _unknown_key(key)
                raise ValueError(f"the loader {name!r} has no option {key!r}")
        for key, value in self.own.items():
            _check_option(key, value, known.options[key])
        check_source(name, self.path or self.revision)
        if isinstance(self.path, dict) and not known.several:
            raise ValueError(f"the loader {name!r} reads all objectives from one path")
        if isinstance(self.path, str) and not known.one:
            raise ValueError(f"the loader {name!r} needs one path for each objective")
        return self

    @classmethod
    def more_keys(cls) -> list[str]:
        """Options that some loaders have, and that are no fields."""
        options = (LoaderOptions.of(loader).options for loader in LOADERS.values())
        return list(dict.fromkeys(k for each in options for k in each if k not in cls.model_fields))

    @property
    def own(self) -> dict[str, Any]:
        """Options that only its loader has."""
        return self.model_extra or {}


def _check_option(key: str, value: object, kind: Any) -> None:
    """Raise ValidationError, about that key, for a value that a loader's own option cannot have."""
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        found: list[Any] = [{**each, "loc": (key, *each["loc"])} for each in error.errors()]
        raise ValidationError.from_exception_data(key, found) from None


def check_source(loader: str, given: object) -> None:
    """Raise ValueError if a loader needs a source that is not given, or has no use for one."""
    known = LoaderOptions.of(LOADERS[loader])
    if known.required and given is None:
        raise ValueError(f"the loader {loader!r} needs path, a file of yours")
    if known.source is None and given is not None:
        raise ValueError(f"the loader {loader!r} reads a file of its own: no path or revision")


def _unknown_key(key: str) -> ValidationError:
    return ValidationError.from_exception_data(
        "Data", [{"type": "extra_forbidden", "loc": (key,), "input": None}]
    )


_METHODS: Mapping[str, Any] = ChainMap({"conditioned": ConditionedOptions}, WEIGHTINGS)
METHOD = Chosen(_METHODS, "method", "clamp")
LOSS = Chosen(LOSSES, "loss", "dpo", is_single_loss)


class Evaluation(Section):
    """What is measured beside loss, accuracy and margin on the test split."""

    generate: bool = True
    """Let every point answer prompts of the test split."""
    n_prompts: Positive | None = 32
    """How many, from the front of the split; null is all."""
    max_new_tokens: Positive = 256
    """Longest answer."""
    temperature: float = Field(default=0.7, ge=0)
    """Sampling temperature; 0 takes the likeliest token."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus."""
    batch_size: Positive = 16
    """Prompts answered at a time."""
    seed: Seed = 0
    """Of the sampling."""
    reference_point: dict[str, float] | None = None
    """Corner of the hypervolume, one loss an objective; by default a tenth of their range beyond
    the worst losses of the non-dominated points."""


class Recipe(Written):
    """One experiment, complete."""

    name: FolderName
    """By default the file's name."""
    description: str = ""
    """One line for `paretune recipes`."""
    model: Model = Model()
    lora: Lora | None = Lora()
    """null trains all weights."""
    data: Data
    method: Annotated[Weighting | ClampOptions | ConditionedOptions, METHOD] = ClampOptions()
    """How the objectives' gradients are combined: `clamp` (the CLAMP paper's Algorithm 1), `linear`
    (weighted sum, PWG), `mgda` (ignores p), `raco` (conflict-averse gradients, clipped); or
    `conditioned`: one training for all preferences, which `sweep` then only measures."""
    loss: Annotated[PreferenceLoss | dict[str, PreferenceLoss], LOSS] = DPO()
    """The preference loss of every objective (Table 1 of the CLAMP paper), or a mapping that gives
    each objective its own: a name, or a section."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Any field of `MultiObjectiveConfig`, which has those of `transformers.TrainingArguments`."""
    sweep: Sweep
    evaluation: Evaluation = Evaluation()
    reward: RewardTraining = RewardTraining()
    rewards: dict[str, RewardSource] | None = None
    """What scores the answers for each objective, or for some; null is the demo data's own scorers,
    and none where the data is other."""
    run: Run = Run()
    output_dir: Location
    """The run folder; by default `runs/` and the recipe's name."""

    @model_validator(mode="after")
    def _agree(self) -> "Recipe":
        if self.model.quantization and self.lora is None:
            raise ValueError("model.quantization needs lora: a quantised base cannot be trained")
        if self.model.shard and self.lora is None:
            raise ValueError("model.shard needs lora: a base in parts is trained by an adapter")
        for key, named in (
            ("method.ideal", getattr(self.method, "ideal", None)),
            ("method.nadir", getattr(self.method, "nadir", None)),
            ("evaluation.reference_point", self.evaluation.reference_point),
            ("data.path", self.data.path if isinstance(self.data.path, dict) else None),
        ):
            if named is not None and (fault := self._names_fault(named, complete=True)):
                raise ValueError(f"{key}: {fault}")
        self.losses  # noqa: B018  (raises)
        if isinstance(self.method, ConditionedOptions):
            try:
                self.method.check_recipe(self)
            except InputError as error:
                raise ValueError(f"method: {error}") from None
            if self.sweep.warm_start:
                raise ValueError("sweep.warm_start is for trainings of single points")
        if fault := self._names_fault(self.rewards or {}):
            raise ValueError(f"rewards: {fault}")
        if self.sweep.placement == "gap":
            self._check_gap()
        try:
            longest = max(len(point.slug()) for point in self.points)
        except InputError as error:
            raise ValueError(f"sweep.preferences: {error}") from None
        if longest > MAX_SLUG:
            raise ValueError(
                f"data.objectives: a point's folder would have a name of {longest} letters, more "
                f"than {MAX_SLUG}: give shorter names"
            )
        return self

    def _check_gap(self) -> None:
        if len(self.data.objectives) != 2:
            raise ValueError("sweep.placement: gap is for two objectives")
        if self.method_name not in ("clamp", "linear"):
            raise ValueError(
                f"sweep.placement: gap is for clamp and linear, which follow p, not for "
                f"{self.method_name}"
            )
        if getattr(self.method, "ideal", None) or getattr(self.method, "nadir", None):
            raise ValueError(
                "sweep.placement: gap takes ideal and nadir from the ends: leave them out of method"
            )

    def _names_fault(self, named: Mapping[str, Any], complete: bool = False) -> str | None:
        """What is wrong with names that must be those of objectives; `complete`: all of them."""
        objectives = self.data.objectives
        for name in named:
            if name not in objectives:
                return (
                    f"there is no objective {shown(name)}{nearest(name, dict.fromkeys(objectives))}"
                )
        missing = [name for name in objectives if name not in named]
        return f"it has no value for {missing[0]!r}" if complete and missing else None

    @property
    def method_name(self) -> str:
        return METHOD.name(self.method)

    @property
    def losses(self) -> dict[str, PreferenceLoss]:
        """The loss of each objective."""
        return losses_by_objective(self.loss, self.data.objectives)

    @property
    def points(self) -> list[Preference]:
        """The preferences to train, in order; of `placement: gap`, the ends, which are known."""
        if self.sweep.placement == "gap":
            return resolve_points([list(end) for end in ENDS], self.data.objectives)
        return resolve_points(self.sweep.preferences, self.data.objectives)
