"""What to mix, as people write it: in Python, in YAML, or as a mergekit configuration."""

from paramdelta.recipe.model import HEAD, VOCABULARY, Address, Delta, Recipe
from paramdelta.recipe.reader import read_recipe, read_scale, recipe_from_dict
from paramdelta.recipe.schedule import PRESETS, Rule, Schedule, Span, preset

__all__ = [
    "HEAD",
    "PRESETS",
    "VOCABULARY",
    "Address",
    "Delta",
    "Recipe",
    "Rule",
    "Schedule",
    "Span",
    "preset",
    "read_recipe",
    "read_scale",
    "recipe_from_dict",
]
