"""A whole recipe as text: written, read back, compared."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import PrivateAttr, ValidationError

from paretune import yaml_syntax
from paretune.errors import InputError, validation_problem
from paretune.recipes.choice import EARLIER
from paretune.recipes.section import Command, Section

_ASIDE = ("name", "description", "output_dir", "reward", "run")


class Written(Section):
    """A whole recipe, which can be written, read back and compared."""

    command: ClassVar[Command] = "sweep"
    """Of which command it is."""
    _source: str = PrivateAttr("the recipe")

    @property
    def source(self) -> str:
        """Where it is from, for messages."""
        return self._source

    def __eq__(self, other: object) -> bool:
        """Whether both say the same, wherever they are from."""
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = Section.__hash__

    def to_yaml(self) -> str:
        """The recipe with every key written out."""
        return yaml_syntax.dump(self.model_dump(mode="json"))

    @classmethod
    def from_yaml(cls, text: str, source: str) -> Self:
        """What `to_yaml` wrote; `source` begins the message if it is not that.

        Raises:
            InputError: not a whole recipe of this version.
        """
        try:
            return cls.model_validate(yaml_syntax.parse(text, source), context=EARLIER)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            problem = f"'{key}': {validation_problem(first)}" if key else validation_problem(first)
            raise InputError(f"{source} is not a recipe of this version ({problem}).") from None

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """`from_yaml` of a file.

        Raises:
            InputError: see there, or the file cannot be read.
        """
        return cls.from_yaml(yaml_syntax.read(path, f"'{path}'"), f"'{path}'")

    def differences(self, other: "Written") -> list[str]:
        """Keys in which this recipe computes something else, each as ``key: ours, not theirs``.

        The name, the description, the run folder, the reward models and who works do not count.
        """
        found = differences(self.model_dump(mode="json"), other.model_dump(mode="json"))
        return [each for each in found if re.split(r"[.:]", each)[0] not in _ASIDE]


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ, each as ``key: ours, not theirs``; a missing one is null."""
    first, second = _flatten(dict(ours)), _flatten(dict(theirs))
    return [
        f"{key}: {first.get(key)!r}, not {second.get(key)!r}"
        for key in {**second, **first}
        if first.get(key) != second.get(key)
    ]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of nested mappings."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, each in value.items():
        flat |= _flatten(each, f"{prefix}.{key}" if prefix else str(key))
    return flat
