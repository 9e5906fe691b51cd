"""What is wrong with a recipe, in sentences: unknown keys, missing ones, values that do not fit."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from paretune.errors import validation_problem
from paretune.names import shown
from paretune.recipes.places import Keys, Place, fields_of, has_own, inside, knows, names_of

_TOLD = 12  # complaints in one message


def unknown_key(root: type[BaseModel], keys: Keys, source: str) -> str:
    """That there is no such key, and which was meant or which there are."""
    sections: list[Place] = [root]
    for key in keys[:-1]:
        sections = inside(sections, key) or sections
    known = list(dict.fromkeys(name for section in sections for name in fields_of(section)))
    prefix = "".join(f"{key}." for key in keys[:-1])
    nearest = get_close_matches(keys[-1], known, n=1)
    if nearest:
        hint = f"did you mean '{prefix}{nearest[0]}'?"
    elif not prefix and (homes := [k for k in known if has_own(inside([root], k), keys[-1])]):
        hint = f"did you mean '{homes[0]}.{keys[-1]}'?"
    else:
        hint = f"known there: {', '.join(known)}."
    return f"Unknown key {shown('.'.join(keys))} in {source}; {hint}"


def complaints(
    root: type[BaseModel],
    error: ValidationError,
    source: str,
    changed: Sequence[Keys],
    more: Sequence[str] = (),
) -> str:
    """All complaints, unknown keys first, missing ones last: a slip of the pen makes both.

    Args:
        more: Complaints from elsewhere, to stand before those about missing keys.
    """
    order = {"extra_forbidden": 0, "missing": 2}
    found = sorted(error.errors(), key=lambda each: order.get(each["type"], 1))
    told: dict[Keys, str] = {}  # the members of a union complain each about the same key
    missing: dict[Keys, str] = {}
    for each in found:
        place = missing if each["type"] == "missing" else told
        place.setdefault(_location(root, each), _complaint(root, each, source, changed))
    return joined([*told.values(), *more, *missing.values()])


def joined(sentences: Sequence[str]) -> str:
    """The first few sentences, and how many more there are."""
    more = f" And {len(sentences) - _TOLD} more." if len(sentences) > _TOLD else ""
    return " ".join(sentences[:_TOLD]) + more


def _complaint(
    root: type[BaseModel], first: Mapping[str, Any], source: str, changed: Sequence[Keys]
) -> str:
    """One complaint, with its key, where it was given, and what to do."""
    keys = _location(root, first)
    key = ".".join(keys)
    if keys and any(keys[: len(given)] == given for given in changed):
        source = f"the override of '{key}'"
    elif any(given[: len(keys)] == keys for given in changed):
        source = f"{source} with the overrides"
    if first["type"] == "extra_forbidden":
        return unknown_key(root, keys, source)
    if first["type"] == "missing":
        return f"'{key}' is missing in {source}: give it a value."
    problem = validation_problem(first)
    if first["type"] == "value_error":
        return f"{source}: {f'{key}: ' if key else ''}{problem}."
    return f"{source}: '{key}' is {shown(first['input'])}, but {problem}."


def _location(root: type[BaseModel], error: Mapping[str, Any]) -> Keys:
    """The keys that an error is about; items of lists are counted from 1."""
    keys = tuple(str(key + 1 if isinstance(key, int) else key) for key in error["loc"])
    if error["type"] == "extra_forbidden":
        return (*_known_part(root, keys[:-1]), keys[-1])
    return _known_part(root, keys)


def _known_part(root: type[BaseModel], location: Keys) -> Keys:
    """The location without the marks that pydantic adds for the members of a union."""
    sections: list[Place] = [root]
    keys: Keys = ()
    for depth, key in enumerate(location):
        if knows(sections, key):
            sections, keys = inside(sections, key), (*keys, key)
        elif len(sections) > 1:  # the mark of the one that `name` chose
            sections = [s for s in sections if key in names_of(s)]
        else:
            return keys + tuple(k for k in location[depth:] if k.isdigit())
    return keys
