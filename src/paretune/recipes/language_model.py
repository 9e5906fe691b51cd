"""The section of a recipe of `paretune weigh` that says how a language model's data is weighed."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from paretune.data import LOADERS
from paretune.recipes.choice import OneOf
from paretune.recipes.schema import Lora, Model, check_source
from paretune.recipes.section import Location, Name, Positive, Section, Seed


class LanguageModelTask(Section):
    """Good and bad responses to train a language model on, against validation criteria.

    x are softmax logits of the two sets' weights, y the parameters of an adapter. The set `high`
    holds the responses with a high mean rating, `low` those with a low one; a criterion's set holds
    the responses that are rated well by it (Appendix E.2 of the WC-Penalty paper).
    """

    name: Literal["language_model"]
    """`language_model`."""
    model: Model = Field(default_factory=Model)
    """What is trained."""
    lora: Lora = Field(default_factory=Lora)
    """The adapter whose parameters are y."""
    loader: Annotated[str, OneOf(LOADERS)]
    """Which reader: the shipped answers, a published data set, or `ratings` for a file of yours."""
    path: Location | None = None
    """A file (.jsonl, .json, .csv, .parquet) or a hub id; null is the published data set."""
    criteria: list[Name] = Field(min_length=2)
    """Validation criteria: the objectives, in the order of the preferences' weights."""
    high: float = 2.5
    """Responses with at least this mean rating are the training set `high`."""
    low: float = 2.0
    """Responses with at most this mean rating are the training set `low`."""
    good: float = 3.0
    """A criterion's set holds the responses that it rates at least so."""
    normalise: bool = False
    """Scale each criterion's ratings to 0 to 1 first, by its lowest and highest one: for criteria
    on different scales. `high`, `low` and `good` then are on that scale."""
    max_prompt: Positive | None = None
    """Tokens of a prompt that are kept, those at its end; null keeps all."""
    max_length: Positive = 1024
    """Longest prompt plus response; longer responses lose their end."""
    rows: Positive | None = None
    """The most responses of a set or a criterion that are used; null is all."""
    batch_size: Positive = 32
    """Responses of each set and each criterion in a step."""
    micro_batch: Positive = 8
    """Responses that go through the model at once where losses are measured on all."""
    ridge: float = Field(default=0.0, ge=0)
    """Twice the factor of ‖y‖² that is added to the training loss."""
    hvp: Literal["finite_difference", "double", "auto"] = "finite_difference"
    """Products with second derivatives; `double` takes several times the memory."""
    split: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[0.6, 0.2, 0.2], min_length=3, max_length=3
    )
    """Shares of training, validation and test prompts."""
    split_seed: Seed = 0
    """Of the split, and of which responses are used."""

    @field_validator("criteria")
    @classmethod
    def _distinct(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("a criterion is named twice")
        return names

    @model_validator(mode="after")
    def _agree(self) -> "LanguageModelTask":
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        self.model.refuse_shard("data weighting")
        check_source(self.loader, self.path)
        return self

    @property
    def objectives(self) -> list[str]:
        return self.criteria
