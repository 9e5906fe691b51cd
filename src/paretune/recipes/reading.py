"""From YAML text and `key=value` overrides to a section; complaints are one sentence.

The same for every kind of recipe: the class of the whole recipe says which keys there are.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from paretune import yaml_syntax
from paretune.errors import InputError
from paretune.files import user_path
from paretune.names import shown
from paretune.recipes.error_messages import complaints, unknown_key
from paretune.recipes.places import Keys, Place, inside, knows

Command = Literal["sweep", "compare", "weigh"]
R = TypeVar("R", bound=BaseModel)


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
        raise InputError(complaints(root, error, source, changed)) from None


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
        if not knows(sections, key):
            raise InputError(unknown_key(root, keys[: depth + 1], f"the override {shown(item)}"))
        sections = inside(sections, key)
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


def absolute(path: str | None) -> str | None:
    """The absolute path, if there is such a file or folder."""
    if path is not None and user_path(path).exists():
        return str(user_path(path).resolve())
    return path
