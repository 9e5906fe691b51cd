"""From YAML text and `key=value` overrides to a section; complaints are one sentence.

The same for every kind of recipe: the class of the whole recipe says which keys there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from paretune import yaml_syntax
from paretune.errors import InputError
from paretune.files import user_path
from paretune.names import shown
from paretune.recipes.choice import Chosen

Command = Literal["sweep", "compare", "weigh"]
Keys = tuple[str, ...]
_TOLD = 5  # complaints in one message
R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True)
class _Listed:
    """A place with a list of sections, each found by its label or its name, such as `methods`."""

    section: type[BaseModel]


@dataclass(frozen=True)
class _Named:
    """A place with a section under each of any names, such as `rewards`."""

    section: type[BaseModel]


Place = type[BaseModel] | _Named | _Listed


def shipped_recipes(command: Command = "sweep") -> dict[str, str]:
    """The text of every recipe in the package for a command, by name."""
    found = (files("paretune.recipes") / command).iterdir()
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in sorted(found, key=lambda file: file.name)
        if file.name.endswith(".yaml")
    }


def find_recipe(name: str | Path, shipped: Mapping[str, str]) -> tuple[str, str, str]:
    """A recipe that ships (by name) or the user's own (by path).

    Returns:
        What to call it in messages, its text, and the name it has by default.

    Raises:
        InputError: there is none.
    """
    path = user_path(name)
    if str(name) in shipped:
        return f"recipe '{name}'", shipped[str(name)], str(name)
    try:
        there = path.is_file()
    except OSError:  # too long a name, say
        there = False
    if there:
        return f"'{name}'", yaml_syntax.read(path, f"'{name}'"), path.stem
    nearest = get_close_matches(path.stem[:100], shipped, n=1)
    hint = f"did you mean '{nearest[0]}'?" if nearest else "`paretune recipes` lists them."
    raise InputError(
        f"There is no recipe {shown(str(name))}, neither a file nor one that ships with paretune; "
        f"{hint}"
    )


def read_recipe(
    root: type[R], text: str, source: str, default_name: str, overrides: Sequence[str]
) -> R:
    """A recipe of class `root` from YAML text; `source` names where it is from in messages.

    Raises:
        InputError: not YAML, an unknown key, or a value that does not fit.
    """
    raw = yaml_syntax.parse(text, source)
    if not isinstance(raw, dict):
        raise InputError(f"{source} must hold the sections of a recipe, not {type(raw).__name__}.")
    changed = [_override(root, raw, item) for item in overrides]
    raw.setdefault("name", default_name)
    raw.setdefault("output_dir", f"runs/{raw['name']}")
    try:
        return root.model_validate(raw)
    except ValidationError as error:
        raise InputError(_sentence(root, error, source, changed)) from None


def _override(root: type[BaseModel], raw: dict[str, Any], item: str) -> Keys:
    """Apply one ``key=value`` to the raw recipe; returns its keys."""
    dotted, equals, text = item.partition("=")
    if not equals or not dotted:
        raise InputError(
            f"{shown(item)} is not an override: write key=value, for example train.max_steps=200."
        )
    keys = tuple(dotted.strip().split("."))
    sections: list[Place] = [root]
    for depth, key in enumerate(keys):
        if not sections:
            break
        if not _knows(sections, key):
            raise InputError(_unknown(root, keys[: depth + 1], f"the override {shown(item)}"))
        sections = _inside(sections, key)
    value = yaml_syntax.parse(text, f"the override {shown(item)}")
    place: Any = raw
    for depth, key in enumerate(keys[:-1], start=1):
        if isinstance(place, list):
            place = _item(place, keys[: depth - 1], key, item)
            continue
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict) and not (isinstance(place, list) and depth < len(keys) - 1):
            raise InputError(
                f"The override {shown(item)} cannot be applied: '{'.'.join(keys[:depth])}' of the "
                f"recipe is {shown(place)}, which has no keys."
            )
    place[keys[-1]] = value
    return keys


def _item(items: list[Any], keys: Keys, wanted: str, override: str) -> dict[str, Any]:
    """The section of a list with this label, or else the only one with this name."""
    sections = [each for each in items if isinstance(each, dict)]
    for key in ("label", "name"):
        found = [e for e in sections if str(e.get(key, "")).casefold() == wanted.casefold()]
        if len(found) == 1:
            return found[0]
    titles = [str(each.get("label") or each.get("name")) for each in sections]
    folded = {title.casefold(): title for title in titles}
    close = get_close_matches(wanted.casefold(), folded, n=1)
    hint = f"did you mean {folded[close[0]]!r}? There are" if close else "there are"
    problem = f"has several {wanted!r}" if found else f"has no {wanted!r}"
    raise InputError(
        f"The override {shown(override)}: '{'.'.join(keys)}' {problem}; {hint} {', '.join(titles)}."
    )


def _fields(place: Place) -> list[str]:
    return [] if isinstance(place, _Named | _Listed) else list(place.model_fields)


def _knows(places: Sequence[Place], key: str) -> bool:
    return any(
        isinstance(place, _Named | _Listed)
        or key in place.model_fields
        or place.model_config.get("extra") == "allow"
        for place in places
    )


def _has(places: Sequence[Place], key: str) -> bool:
    """Whether a place has a key of its own by this name."""
    return any(key in _fields(place) for place in places)


def _inside(places: Sequence[Place], key: str) -> list[Place]:
    """The places below a key that is a section itself: several where one of them is chosen."""
    found: list[Place] = []
    for place in places:
        if isinstance(place, _Named | _Listed):
            found.append(place.section)
        elif key in place.model_fields:
            annotation = place.model_fields[key].annotation
            for choice in place.model_fields[key].metadata:
                if isinstance(choice, Chosen):
                    found += choice.sections()
                    found += [_Named(each) for each in choice.sections() if choice.single]
            for kind in (annotation, *get_args(annotation)):
                if _is_section(kind):
                    found.append(kind)
                elif get_origin(kind) is dict and _is_section(get_args(kind)[1]):
                    found.append(_Named(get_args(kind)[1]))
                elif get_origin(kind) is list and _is_section(get_args(kind)[0]):
                    found.append(_Listed(get_args(kind)[0]))
    return found


def _names(place: Place) -> tuple[Any, ...]:
    """The values of `name` by which a section is chosen."""
    field = None if isinstance(place, _Named | _Listed) else place.model_fields.get("name")
    return () if field is None else get_args(field.annotation)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _unknown(root: type[BaseModel], keys: Keys, source: str) -> str:
    sections: list[Place] = [root]
    for key in keys[:-1]:
        sections = _inside(sections, key) or sections
    known = list(dict.fromkeys(name for section in sections for name in _fields(section)))
    prefix = "".join(f"{key}." for key in keys[:-1])
    nearest = get_close_matches(keys[-1], known, n=1)
    if nearest:
        hint = f"did you mean '{prefix}{nearest[0]}'?"
    elif not prefix and (homes := [k for k in known if _has(_inside([root], k), keys[-1])]):
        hint = f"did you mean '{homes[0]}.{keys[-1]}'?"
    else:
        hint = f"known there: {', '.join(known)}."
    return f"Unknown key {shown('.'.join(keys))} in {source}; {hint}"


def _sentence(
    root: type[BaseModel], error: ValidationError, source: str, changed: Sequence[Keys]
) -> str:
    """All complaints, unknown keys first, missing ones last: a slip of the pen makes both."""
    order = {"extra_forbidden": 0, "missing": 2}
    found = sorted(error.errors(), key=lambda each: order.get(each["type"], 1))
    complaints: dict[Keys, str] = {}  # the members of a union complain each about the same key
    for each in found:
        keys = _location(root, each)
        complaints.setdefault(keys, _complaint(root, each, source, changed))
    told = list(complaints.values())
    more = f" And {len(told) - _TOLD} more." if len(told) > _TOLD else ""
    return " ".join(told[:_TOLD]) + more


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
        return _unknown(root, keys, source)
    if first["type"] == "missing":
        return f"'{key}' is missing in {source}: give it a value."
    if first["type"] == "value_error":
        problem = str(first["ctx"]["error"]).rstrip(".")
        return f"{source}: {f'{key}: ' if key else ''}{problem}."
    problem = first["msg"][0].lower() + first["msg"][1:]
    return f"{source}: '{key}' is {shown(first['input'])}, but {problem}."


def _location(root: type[BaseModel], error: Mapping[str, Any]) -> Keys:
    """The keys that an error is about."""
    keys = tuple(str(key) for key in error["loc"])
    if error["type"] == "extra_forbidden":
        return (*_known_part(root, keys[:-1]), keys[-1])
    return _known_part(root, keys)


def _known_part(root: type[BaseModel], location: Keys) -> Keys:
    """The location without the marks that pydantic adds for the members of a union."""
    sections: list[Place] = [root]
    keys: Keys = ()
    for depth, key in enumerate(location):
        if _knows(sections, key):
            sections, keys = _inside(sections, key), (*keys, key)
        elif len(sections) > 1:  # the mark of the one that `name` chose
            sections = [s for s in sections if key in _names(s)]
        else:
            return keys + tuple(k for k in location[depth:] if k.isdigit())
    return keys


def absolute(path: str | None) -> str | None:
    """The absolute path, if there is such a file or folder."""
    if path is not None and user_path(path).exists():
        return str(user_path(path).resolve())
    return path
