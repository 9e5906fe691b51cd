"""From a name or a path, and `key=value` overrides, to a recipe; complaints are one sentence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from paretune.models import BUILT_IN
from paretune.recipes.points import as_preference
from paretune.recipes.reading import absolute, find_recipe, read_recipe
from paretune.recipes.schema import Recipe

R = TypeVar("R", bound=Recipe)


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe, shipped (by name) or of your own (by path), and change keys of it.

    Preferences come out as lists of weights in the order of ``data.objectives``, and paths to
    existing files as absolute ones, so that the recipe means the same wherever it is read.

    Args:
        overrides: ``"section.key=value"``, the value written as in YAML.

    Raises:
        InputError: no such recipe, not YAML, an unknown key, or a value that does not fit.
    """
    source, text, default_name = find_recipe(name, Recipe.command)
    return recipe_from_text(text, source, default_name, overrides)


def recipe_from_text(
    text: str, source: str, default_name: str, overrides: Sequence[str] = ()
) -> Recipe:
    """A recipe from YAML text; `source` names where it is from in messages."""
    return resolve(read_recipe(Recipe, text, source, default_name, overrides))


def resolve(recipe: R) -> R:
    """The recipe with preferences as lists of weights, and paths of existing files absolute."""
    sweep = recipe.sweep
    if sweep.placement == "grid":
        points = [list(p.weights) for p in recipe.points]
        sweep = sweep.model_copy(update={"preferences": points})
    data = recipe.data.model_copy(update={"path": _absolute(recipe.data.path)})
    model = recipe.model
    if model.name not in BUILT_IN:
        model = model.model_copy(update={"name": _absolute(model.name)})
    return recipe.model_copy(update={"sweep": sweep, "data": data, "model": model})


def with_preference(recipe: Recipe, weights: Mapping[str, float]) -> Recipe:
    """The recipe with a single point; objectives that are not named get weight zero.

    Raises:
        InputError: an unknown objective, or weights that do not sum to one.
    """
    point = as_preference(weights, recipe.data.objectives, "the preference")
    update = {"preferences": [list(point.weights)], "placement": "grid", "points": None}
    sweep = recipe.sweep.model_copy(update=update)
    return recipe.model_copy(update={"sweep": sweep})


def dated(recipe: R, begun: str | None) -> R:
    """The recipe with the date that its model's chat template is told, if it says none itself.

    Args:
        begun: The day on which the run was begun; None leaves it to each day.
    """
    if recipe.model.date is not None or begun is None:
        return recipe
    model = recipe.model.model_copy(update={"date": begun})
    return recipe.model_copy(update={"model": model})


def _absolute(path: str | dict[str, str] | None) -> str | dict[str, str] | None:
    if isinstance(path, dict):
        return {name: str(absolute(each)) for name, each in path.items()}
    return absolute(path)
