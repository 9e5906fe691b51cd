"""From YAML text and `key=value` overrides to a section; complaints are one sentence.

The same for every kind of recipe: the class of the whole recipe says which keys there are.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from paretune import yaml_syntax
from paretune.errors import InputError
from paretune.files import user_path
from paretune.names import shown
from paretune.recipes.error_messages import complaints, unknown_key
from paretune.recipes.places import Keys, Place, inside, knows
from paretune.recipes.section import Command

if TYPE_CHECKING:
    from paretune.recipes.written import Written

COMMANDS: tuple[Command, ...] = get_args(Command)
R = TypeVar("R", bound="Written")


def shipped_recipes(command: Command = "sweep") -> dict[str, str]:
    """The text of every recipe in the package for a command, by name."""
    found = (files("paretune.recipes") / command).iterdir()
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in sorted(found, key=lambda file: file.name)
        if file.name.endswith(".yaml")
    }


def find_recipe(name: str | Path, command: Command) -> tuple[str, str, str]:
    """A recipe of a command that ships (by name) or the user's own (by path).

    Returns:
        What to call it in messages, its text, and the name it has by default.

    Raises:
        InputError: there is none, or it is another command's.
    """
    path, shipped = user_path(name), shipped_recipes(command)
    if str(name) in shipped:
        return f"recipe '{name}'", shipped[str(name)], str(name)
    if _is_file(path):
        return f"'{name}'", yaml_syntax.read(path, f"'{name}'"), path.stem
    for other in COMMANDS:
        if str(name) in shipped_recipes(other):
            raise _of_another(f"'{name}'", other, name)
    nearest = get_close_matches(path.stem[:100], shipped, n=1)
    hint = f"did you mean '{nearest[0]}'?" if nearest else "`paretune recipes` lists them."
    for ending in (".yaml", ".yml"):
        if str(name) and _is_file(user_path(f"{name}{ending}")):
            hint = f"did you mean {shown(f'{name}{ending}')}?"
    if _is_file(path / "recipe.yaml"):
        hint = f"in the folder there is {shown(str(Path(name) / 'recipe.yaml'))}."
    raise InputError(
        f"There is no recipe {shown(str(name))}, neither a file nor one that ships with paretune; "
        f"{hint}"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, say
        return False


def _of_another(source: str, command: Command, name: str | Path) -> InputError:
    return InputError(
        f"{source} is a recipe of `paretune {command}`: run `paretune {command} {name}`."
    )


def read_recipe(
    root: type[R], text: str, source: str, default_name: str, overrides: Sequence[str]
) -> R:
    """A recipe of class `root` from YAML text; `source` names where it is from in messages.

    Raises:
        InputError: not YAML, a recipe of another command, an unknown key, or a value that does not
            fit.
    """
    raw = yaml_syntax.parse(text, source)
    if not isinstance(raw, dict):
        raise InputError(f"{source} must hold the sections of a recipe, not {type(raw).__name__}.")
    changed = [_override(root, raw, item) for item in overrides]
    command = _command(raw)
    if command is not None and command != root.command:
        raise _of_another(source, command, source.removeprefix("recipe ").strip("'"))
    raw.setdefault("name", default_name)
    raw.setdefault("output_dir", f"runs/{raw['name']}")
    if isinstance(raw["output_dir"], str) and raw["output_dir"].startswith("~"):
        raw["output_dir"] = str(user_path(raw["output_dir"]))
    try:
        recipe = root.model_validate(raw)
    except ValidationError as error:
        # What `train` of a data weighting may say is another trainer's.
        more = [] if root.command == "weigh" else _train_faults(raw, source)
        raise InputError(complaints(root, error, source, changed, more)) from None
    recipe._source = source
    return recipe


def _command(raw: Mapping[str, Any]) -> Command | None:
    """Of which command a recipe is, by the sections that only this one has; None if it has none."""
    if isinstance(raw.get("task"), dict):
        return "weigh"
    if "data" not in raw:
        return None
    return "compare" if "methods" in raw else "sweep"


def _train_faults(raw: Mapping[str, Any], source: str) -> list[str]:
    """What is wrong in the `train` section of a recipe that is wrong elsewhere, too."""
    train = raw.get("train")
    if not isinstance(train, dict) or not train:
        return []
    from paretune.recipes.train_keys import checked_section  # loads transformers

    return checked_section(train, source=source)[1]


def _override(root: type[BaseModel], raw: dict[str, Any], item: str) -> Keys:
    """Apply one ``key=value`` to the raw recipe; returns its keys."""
    dotted, equals, text = item.partition("=")
    if not equals or not dotted:
        raise InputError(
            f"{shown(item)} is not an override: write key=value, for example "
            "evaluation.max_new_tokens=200."
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
    listed = ", ".join(map(shown, titles))
    raise InputError(
        f"The override {shown(override)}: '{'.'.join(keys)}' {problem}; {hint} {listed}."
    )


def absolute(path: str | None) -> str | None:
    """The absolute path, if there is such a file or folder."""
    if path is not None and user_path(path).exists():
        return str(user_path(path).resolve())
    return path
