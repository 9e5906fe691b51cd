"""What every section of a recipe is, and the checks that hold for all of them."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from paretune.names import folder_fault, name_fault, shown, text_fault

Command = Literal["sweep", "compare", "weigh"]
"""The commands that have recipes."""

FLOAT32_MAX = 3.4028234663852886e38
"""Larger numbers are infinite in a model's arithmetic."""


class Section(BaseModel):
    """Unknown keys, wrong types, and numbers that are not finite are errors; values never change.

    So are control characters in texts, in free mappings such as `train` too.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    @model_validator(mode="after")
    def _usable(self) -> Self:
        for key, value in self:
            for inner, leaf in _leaves(value, key):
                if fault := leaf_fault(leaf):
                    raise ValueError(f"{inner}: {fault}")
        return self


def leaf_fault(value: Any) -> str | None:
    """What makes a text or a number unusable anywhere in a recipe; None if nothing does."""
    if isinstance(value, str):
        return text_fault(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"it must be a finite number, not {value}"
    if isinstance(value, float) and abs(value) > FLOAT32_MAX:
        return f"{value:g} is infinite in float32"
    return None


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Texts and numbers in a value, with their dotted keys; sections have seen to their own."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield f"{key}, a name in it", name
            yield from _leaves(each, f"{key}.{name}")
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each, key)
    else:
        yield key, value


def _named(name: str) -> str:
    if fault := name_fault(name):
        raise ValueError(fault)
    return name


def _folder(name: str) -> str:
    if fault := folder_fault(name):
        raise ValueError(fault)
    return name


def _location(path: str) -> str:
    if not path.strip() or "\n" in path:
        raise ValueError(f"{shown(path)} is no path")
    if any(len(part.encode("utf-8", "replace")) > 255 for part in path.split("/")):
        raise ValueError(f"{shown(path)} has a part that is too long for a folder's name")
    return path


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is given twice")
    return seeds


def _whole(shares: list[float]) -> list[float]:
    if not math.isclose(sum(shares), 1):
        raise ValueError(f"the three shares must sum to one, not {sum(shares):g}")
    return shares


def _by_name(methods: Any) -> Any:
    if isinstance(methods, list):
        methods = dict.fromkeys(map(str, methods))
    if not isinstance(methods, dict):
        return methods
    return {name: {} if options is None else options for name, options in methods.items()}


Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What numpy and torch both take."""
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
"""Each once."""
Shares = Annotated[
    list[Annotated[float, Field(gt=0, lt=1)]],
    Field(min_length=3, max_length=3),
    AfterValidator(_whole),
]
"""Of training, validation and test data; together all of it."""
NAMED_OPTIONS = BeforeValidator(_by_name)
"""Of a mapping from names to options: a name without any may stand alone, and a list of names is
enough."""
Name = Annotated[str, AfterValidator(_named)]
"""Fit for tables and figures: one line, no control characters, at most 100 bytes."""
FolderName = Annotated[str, AfterValidator(_folder)]
"""A `Name` without slashes that does not begin with a dot, a dash or a tilde."""
Location = Annotated[str, AfterValidator(_location)]
"""A path, or an id on the hub."""


class Run(Section):
    """Who works on the run; the results do not depend on it."""

    gpus_per_point: Positive | None = None
    """GPUs of a point, with a process for each, which `--workers` and `--ray` start; null is one
    where there are any."""

    def refuse_several(self, what: str) -> None:
        """Raise ValueError if a point has several GPUs."""
        if (self.gpus_per_point or 1) > 1:
            raise ValueError(
                f"run.gpus_per_point: {what} does not divide a training among processes: leave "
                "it out, and give --workers N"
            )
