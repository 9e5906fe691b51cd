"""Recipes: one YAML file an experiment, shipped with the package, and how they are read."""

from paretune.recipes.load import dated, load_recipe, recipe_from_text, with_preference
from paretune.recipes.reading import shipped_recipes
from paretune.recipes.schema import Recipe

__all__ = [
    "Recipe",
    "dated",
    "load_recipe",
    "recipe_from_text",
    "shipped_recipes",
    "with_preference",
]
