"""From a name or a path, and `key=value` overrides, to a recipe; complaints are one sentence."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from paretune.errors import InputError
from paretune.models import EMBEDDED
from paretune.recipes import syntax
from paretune.recipes.points import as_preference
from paretune.recipes.schema import Recipe

Keys = tuple[str, ...]

_FREE = "train"  # its keys are checked against the trainer's own fields, which need torch


def shipped_recipes() -> dict[str, str]:
    """The text of every recipe in the package, by name."""
    found = (file for file in files("paretune.recipes").iterdir() if file.name.endswith(".yaml"))
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in sorted(found, key=lambda file: file.name)
    }


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe, shipped (by name) or of your own (by path), and change keys of it.

    Preferences come out as lists of weights in the order of ``data.objectives``, and paths to
    existing files as absolute ones, so that the recipe means the same wherever it is read.

    Args:
        overrides: ``"section.key=value"``, the value written as in YAML.

    Raises:
        InputError: no such recipe, not YAML, an unknown key, or a value that does not fit.
    """
    shipped = shipped_recipes()
    path = Path(name).expanduser()
    if str(name) in shipped:
        source, text = f"recipe '{name}'", shipped[str(name)]
    elif path.is_file():
        source, text = f"'{name}'", path.read_text(encoding="utf-8")
    else:
        nearest = get_close_matches(path.stem, shipped, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else "`paretune recipes` lists them."
        raise InputError(
            f"There is no recipe '{name}', neither a file nor one that ships with paretune; {hint}"
        )
    return recipe_from_text(text, source, path.stem, overrides)


def recipe_from_text(
    text: str, source: str, default_name: str, overrides: Sequence[str] = ()
) -> Recipe:
    """A recipe from YAML text; `source` names where it is from in messages."""
    raw = syntax.parse(text, source)
    if not isinstance(raw, dict):
        raise InputError(f"{source} must hold the sections of a recipe, not {type(raw).__name__}.")
    changed = [_override(raw, item) for item in overrides]
    raw.setdefault("name", default_name)
    raw.setdefault("output_dir", f"runs/{raw['name']}")
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise InputError(_sentence(error, source, changed)) from None
    sweep = recipe.sweep.model_copy(
        update={"preferences": [list(p.weights) for p in recipe.points]}
    )
    data = recipe.data.model_copy(update={"path": _absolute(recipe.data.path)})
    model = recipe.model
    if model.name != EMBEDDED:
        model = model.model_copy(update={"name": _absolute(model.name)})
    return recipe.model_copy(update={"sweep": sweep, "data": data, "model": model})


def with_preference(recipe: Recipe, weights: Mapping[str, float]) -> Recipe:
    """The recipe with a single point; objectives that are not named get weight zero.

    Raises:
        InputError: an unknown objective, or weights that do not sum to one.
    """
    point = as_preference(weights, recipe.data.objectives, "the preference")
    sweep = recipe.sweep.model_copy(update={"preferences": [list(point.weights)]})
    return recipe.model_copy(update={"sweep": sweep})


def _override(raw: dict[str, Any], item: str) -> Keys:
    """Apply one ``key=value`` to the raw recipe; returns its keys."""
    dotted, equals, text = item.partition("=")
    if not equals or not dotted:
        raise InputError(
            f"'{item}' is not an override: write key=value, for example train.max_steps=200."
        )
    keys = tuple(dotted.strip().split("."))
    section: type[BaseModel] | None = Recipe
    for depth, key in enumerate(keys):
        if section is None:
            break
        if key not in section.model_fields:
            raise InputError(_unknown(keys[: depth + 1], f"the override '{item}'"))
        section = _section(section, key)
    value = syntax.parse(text, f"the override '{item}'")
    place = raw
    for key in keys[:-1]:
        if not isinstance(place.get(key), dict):
            place[key] = {}
        place = place[key]
    place[keys[-1]] = value
    return keys


def _section(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The class of a key that is a section itself."""
    annotation = section.model_fields[key].annotation
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _unknown(keys: Keys, source: str) -> str:
    section: type[BaseModel] = Recipe
    for key in keys[:-1]:
        section = _section(section, key) or section
    known = list(section.model_fields)
    prefix = "".join(f"{key}." for key in keys[:-1])
    nearest = get_close_matches(keys[-1], known, n=1)
    if nearest:
        hint = f"did you mean '{prefix}{nearest[0]}'?"
    elif not prefix and (homes := [k for k in known if _has(k, keys[-1])]):
        hint = f"did you mean '{homes[0]}.{keys[-1]}'?"
    else:
        hint = f"known there: {', '.join(known)}."
    return f"Unknown key '{'.'.join(keys)}' in {source}; {hint}"


def _has(key: str, name: str) -> bool:
    section = _section(Recipe, key)
    return section is not None and name in section.model_fields


def _sentence(error: ValidationError, source: str, changed: Sequence[Keys]) -> str:
    """The first complaint, with its key, where it was given, and what to do."""
    first = error.errors()[0]
    location = tuple(str(key) for key in first["loc"])
    keys = _known_part(location)
    key = ".".join(keys)
    if keys and any(keys[: len(given)] == given for given in changed):
        source = f"the override of '{key}'"
    elif any(given[: len(keys)] == keys for given in changed):
        source = f"{source} with the overrides"
    if first["type"] == "extra_forbidden":
        return _unknown(location, source)
    if first["type"] == "missing":
        return f"'{key}' is missing in {source}: give it a value."
    if first["type"] == "value_error":
        problem = str(first["ctx"]["error"]).rstrip(".")
        return f"{source}: {f'{key}: ' if key else ''}{problem}."
    problem = first["msg"][0].lower() + first["msg"][1:]
    return f"{source}: '{key}' is {first['input']!r}, but {problem}."


def _known_part(location: Keys) -> Keys:
    """The location without the marks that pydantic adds for the members of a union."""
    section: type[BaseModel] | None = Recipe
    for depth, key in enumerate(location):
        if section is None or key not in section.model_fields:
            return location[:depth] + tuple(k for k in location[depth:] if k.isdigit())
        section = _section(section, key)
    return location


def _absolute(path: str | dict[str, str] | None) -> str | dict[str, str] | None:
    if isinstance(path, dict):
        return {name: str(_absolute(each)) for name, each in path.items()}
    if path is not None and Path(path).expanduser().exists():
        return str(Path(path).expanduser().resolve())
    return path
