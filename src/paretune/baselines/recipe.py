"""The recipe of a comparison: one like a sweep's, with a list of methods in place of one."""

import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError, field_validator, model_validator

from paretune.baselines import BASELINES
from paretune.errors import InputError, validation_problem
from paretune.moo.weightings import WEIGHTINGS
from paretune.options import load_kind, nearest
from paretune.recipes.choice import OneOf, OptionsOf, build, section_of, written
from paretune.recipes.load import resolve
from paretune.recipes.points import resolve_points
from paretune.recipes.reading import find_recipe, read_recipe
from paretune.recipes.schema import METHOD, Recipe
from paretune.recipes.section import Command, Name, Section, Seed

METHODS: Mapping[str, Any] = ChainMap(BASELINES, WEIGHTINGS)
"""All that can be compared, by name."""


class Entry(Section):
    """One method of a comparison."""

    name: Annotated[str, OneOf(METHODS)]
    """Which method: a weighting of `sweep`, or one of the baselines."""
    label: Name | None = None
    """What to call it in tables, and its folder; by default its name."""
    options: Annotated[dict[str, Any], OptionsOf(METHODS)] = Field(default_factory=dict)
    """Keys of a sweep's `method` for a weighting; else the method's own."""
    seeds: list[Seed] | None = Field(default=None, min_length=1)
    """Each point is trained once with each; null is `sweep.seeds`."""

    preferences: list[list[float]] | None = Field(default=None, min_length=1)
    """The points of this method alone, each the objectives' weights; null is those of the sweep."""
    range_normalised: bool = False
    """For `clamp`: as `ideal` and `nadir`, what the adapters trained on each objective alone reach
    (mean training loss of their last third of the steps) and where they begin."""

    train: dict[str, Any] = Field(default_factory=dict)
    """For `clamp`, `linear`, `mgda`, `raco`: changes to the recipe's `train` for this entry alone,
    such as another batch size; its budget is then not that of the others."""

    @model_validator(mode="after")
    def _valid_options(self) -> "Entry":
        if self.train and (self.range_normalised or not self.is_weighting):
            # What several methods share is trained as the recipe's own `train` says.
            raise ValueError(
                f"{self.title}: train is for the weightings ({', '.join(WEIGHTINGS)}), without "
                "range_normalised"
            )
        if self.range_normalised and (self.name != "clamp" or "ideal" in self.options):
            raise ValueError(f"{self.title}: range_normalised is for clamp without options.ideal")
        try:
            self.parsed  # noqa: B018  (raises)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(("options", *(str(part) for part in first["loc"])))
            problem = validation_problem(first)
            if first["type"] == "extra_forbidden":
                known = section_of(load_kind(METHODS, self.name, "method")).model_fields
                problem = f"there is no such option{nearest(first['loc'][-1], known)}"
            raise ValueError(f"{self.title}, {key}: {problem}") from None
        except InputError as error:
            raise ValueError(f"{self.title}, options: {error}") from None
        if not self.slug:
            raise ValueError(f"the label {self.label!r} has no letter or digit")
        return self

    @property
    def title(self) -> str:
        return self.name if self.label is None else self.label

    @property
    def slug(self) -> str:
        """The label as a folder's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def is_weighting(self) -> bool:
        """Whether it is a weighting of a sweep, not a method that trains by itself."""
        return self.name in WEIGHTINGS

    @property
    def trains_alone(self) -> bool:
        """Whether its trainings cannot be divided among processes."""
        return not (self.is_weighting or self.parsed.divisible)

    @property
    def parsed(self) -> Any:
        """The options, checked: the object of the method's class."""
        if self.is_weighting:
            return METHOD.read({**self.options, "name": self.name})
        return build(load_kind(BASELINES, self.name, "method"), self.options)

    @property
    def settings(self) -> dict[str, Any]:
        """The options as they are kept in files, each written out."""
        return METHOD.write(self.parsed) if self.is_weighting else written(self.parsed)

    def earlier(self, settings: Any) -> Any:
        """`settings` as an earlier version kept them, as this one would; others as they are."""
        try:
            if self.is_weighting:
                return METHOD.write(METHOD.read(settings, earlier=True))
            kind = load_kind(BASELINES, self.name, "method")
            return written(build(kind, kind.earlier(settings)))
        except (ValueError, TypeError, AttributeError):
            return settings


class CompareRecipe(Recipe):
    """One comparison, complete; model, data, budget and metrics are the same for all methods."""

    command: ClassVar[Command] = "compare"

    methods: list[Entry] = Field(min_length=1)
    """The methods, in the order of the table."""

    @field_validator("methods")
    @classmethod
    def _distinct(cls, methods: list[Entry]) -> list[Entry]:
        slugs = [entry.slug for entry in methods]
        for entry in methods:
            if slugs.count(entry.slug) > 1:
                raise ValueError(f"two methods are called {entry.title!r}: give them labels")
        return methods

    @model_validator(mode="after")
    def _no_single_method(self) -> "CompareRecipe":
        if self.method != type(self).model_fields["method"].default:
            raise ValueError("method is for a sweep; a comparison has its options in methods")
        if self.sweep.placement != "grid":
            raise ValueError(
                "sweep.placement is for a sweep: here all methods have the same points"
            )
        if self.sweep.warm_start:
            raise ValueError("sweep.warm_start is for a sweep: here points are independent")
        if self.undivided:
            self.run.refuse_several(self.undivided)
            self.model.refuse_shard(self.undivided)
        for entry in self.methods:
            if entry.preferences is not None:
                try:
                    resolve_points(entry.preferences, self.data.objectives)
                except InputError as error:
                    raise ValueError(f"{entry.title}, preferences: {error}") from None
            if not entry.is_weighting:
                try:
                    entry.parsed.check_recipe(self)
                except InputError as error:
                    raise ValueError(f"{entry.title}: {error}") from None
        return self

    @property
    def undivided(self) -> str:
        """The methods whose trainings cannot be divided among processes, in words; "" for none."""
        return ", ".join(entry.title for entry in self.methods if entry.trains_alone)


def load_comparison(name: str | Path, overrides: Sequence[str] = ()) -> CompareRecipe:
    """Load the recipe of a comparison, as `paretune.recipes.load_recipe` does that of a sweep.

    Raises:
        InputError: no such recipe, not YAML, an unknown key, or a value that does not fit.
    """
    source, text, default_name = find_recipe(name, CompareRecipe.command)
    return resolve(read_recipe(CompareRecipe, text, source, default_name, overrides))
