"""What an option is: declared once, as a field of the class of the thing that it sets.

The class is a frozen dataclass, a section of a recipe (a pydantic model), or a plain dataclass if
the mutable arguments of transformers inherit it. Its fields have the defaults, and say what they
mean in their metadata (``help``), in a docstring after them, or under "Attributes:" of the class's
own. Classes of one kind (losses, weightings, baselines, ...) stand in a plain dict by name, which
everything that offers them reads. Nothing here imports torch.
"""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Any, get_type_hints

from paretune.errors import InputError

Kinds = Mapping[str, Any]
"""By name, classes or functions; those costly to import as ``"module:name"``."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a class.

    Attributes:
        name: of the field.
        key: what a recipe calls it; None where a recipe does not set it.
        type: with its constraints (``Annotated``), where it has some.
        default: `dataclasses.MISSING` where one must be given.
        help: what it means, in a sentence or two.
    """

    name: str
    key: str | None
    type: Any
    default: Any
    help: str


def option(default: Any, help: str, key: str | None = "") -> Any:
    """A dataclass's field with its description.

    Args:
        key: What a recipe calls it, where that is not the field's name; None where it does not.
    """
    metadata = {"help": help} if key == "" else {"help": help, "key": key}
    return dataclasses.field(default=default, metadata=metadata)


NOT_IN_RECIPES: Mapping[str, Any] = {"key": None}
"""The metadata of a field that a recipe does not set."""


def as_option(owner: Any, name: str) -> Any:
    """A field that has default and description of the option `name` of another dataclass."""
    (found,) = (each for each in options_of(owner) if each.name == name)
    return option(found.default, found.help)


@cache
def options_of(kind: Any) -> tuple[Option, ...]:
    """The options of a dataclass, in order."""
    types, texts = get_type_hints(kind, include_extras=True), attributes(kind)
    return tuple(
        Option(
            name=field.name,
            key=field.metadata.get("key", field.name),
            type=types[field.name],
            default=_default(field),
            help=str(field.metadata.get("help") or texts.get(field.name, "")),
        )
        for field in dataclasses.fields(kind)
        if field.init
    )


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def attributes(kind: Any) -> dict[str, str]:
    """What the docstrings of a class and its bases say under "Attributes:" (a function's: "Args:").

    >>> attributes(Option)["name"]
    'of the field.'
    """
    found: dict[str, str] = {}
    for each in reversed(getattr(kind, "__mro__", (kind,))):
        text = inspect.cleandoc(each.__doc__ or "")
        block = re.search(r"^(?:Attributes|Args):\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE)
        names: list[str] = []
        for line in block.group(1).splitlines() if block else ():
            begun = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
            if begun:
                names = begun.group(1).split(", ")
                found |= dict.fromkeys(names, begun.group(2))
            elif line.strip():
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def load_kind(kinds: Kinds, name: str, what: str) -> Any:
    """The class of this name.

    Args:
        what: The kinds in a word, for the message: "loss".

    Raises:
        InputError: there is none.
    """
    if name not in kinds:
        raise InputError(f"Unknown {what} {name!r}{nearest(name, kinds)}")
    entry = kinds[name]
    if isinstance(entry, str):
        module, _, attribute = entry.partition(":")
        return getattr(import_module(module), attribute)
    return entry


def name_of(kinds: Kinds, value: object) -> str | None:
    """The name under which the class of `value` stands among these; None if it does not."""
    kind = type(value)
    same = (kind, f"{kind.__module__}:{kind.__qualname__}")
    return next((name for name, entry in kinds.items() if entry in same), None)


def nearest(name: object, known: Mapping[str, Any]) -> str:
    """``; did you mean ...? There are ...``, to end a message about a name that is not known."""
    close = get_close_matches(str(name), known, n=1)
    return f"; {f'did you mean {close[0]!r}? ' if close else ''}there are {', '.join(known)}."
