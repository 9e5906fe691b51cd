"""The sections of a recipe that speak of rewards: how reward models are trained, what scores."""

from typing import Any, Literal

from pydantic import Field, model_validator

from paretune.recipes.section import Location, Positive, Section, Seed


class RewardTraining(Section):
    """How `paretune reward train` makes a reward model of each objective's pairs.

    The adapter is that of the recipe's `lora` section, with a score head.
    """

    model: Location | None = None
    """The base, any language model or classifier; null is the recipe's `model.name`."""
    max_length: Positive = 1024
    """Longest prompt plus response in tokens; pairs with a longer one are left out and counted."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Any field of `trl.RewardConfig`, which has those of `transformers.TrainingArguments`."""
    seed: Seed = 0
    """Of the score head, the adapter and the order of the pairs."""


class RewardSource(Section):
    """What scores the answers for one objective.

    The keys after `name` are for `model` alone, and `batch_size` for `trained` too.
    """

    scorer: Literal["demo", "model", "trained"]
    """`demo` (a plain scorer of the demo data), `model` (any reward model) or `trained` (by
    `paretune reward train`)."""
    name: Location | None = None
    """`demo`: which scorer, null is the objective's own; `model`: a folder or a hub id; `trained`:
    the folder with one reward model an objective, null is the run's own."""
    input: Literal["chat", "text", "pair"] = "chat"
    """What the model reads: the conversation through its own chat template, one text made by
    `template`, or two texts, the prompt by `template` and the answer."""
    template: str | None = None
    """Text with `{prompt}`, `{response}` and `{eos}` to be filled in; null is
    `{prompt}{response}`, or for a pair `{prompt}`."""
    turns: dict[str, str] | None = None
    """How messages become `{prompt}`: a text with `{content}` for each role; roles without one
    are left out, but for users. null takes a single question as it is."""
    label: int | str | None = None
    """Which of several outputs is the score, by number or name."""
    lower_is_better: bool = False
    """The output is a cost: its sign is turned."""
    max_length: Positive | None = None
    """Longest input in tokens, the end of longer ones is cut off; null is the model's own limit."""
    batch_size: Positive = 16
    """Answers scored at a time."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the weights."""
    trust_remote_code: bool = False
    """The model needs code that comes with its checkpoint; it runs where the command has
    `--trust-remote-code` too."""

    @model_validator(mode="after")
    def _fits(self) -> "RewardSource":
        if self.scorer == "model":
            if self.name is None:
                raise ValueError("the scorer 'model' needs name, a folder or a hub id")
            return self
        own = ("scorer", "name", "batch_size") if self.scorer == "trained" else ("scorer", "name")
        for key, field in type(self).model_fields.items():
            if key not in own and getattr(self, key) != field.default:
                raise ValueError(f"the scorer {self.scorer!r} has no option {key!r}")
        return self
