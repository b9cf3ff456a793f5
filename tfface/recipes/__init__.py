"""One file a paper: its choices, its variants, its published figures; `RECIPES` is their table."""

from tfface.errors import UserError
from tfface.recipes.arg import ARG
from tfface.recipes.compact import Compact
from tfface.recipes.gender import Gender
from tfface.recipes.multitask import Multitask
from tfface.recipes.occluded import Occluded
from tfface.recipes.race import Race
from tfface.recipes.recipe import Recipe, parse_settings

RECIPES: dict[str, type[Recipe]] = {recipe.name: recipe for recipe in (ARG, Race, Multitask, Gender, Occluded, Compact)}
"""Name -> recipe."""


def load(name: str, variant: str = "", settings: list[str] | None = None, tiny: bool = False) -> Recipe:
    """A recipe by its name, as a variant, shrunk, with changed fields, in this order.

    Raises:
        UserError: an unknown recipe, variant or field; the message lists the valid ones.
    """
    if name not in RECIPES:
        raise UserError(f"Unknown recipe. Expected one of: {', '.join(RECIPES)}. Received: {name}.")
    recipe = RECIPES[name]()
    if variant:
        recipe = recipe.variant(variant)
    if tiny:
        recipe = recipe.tiny()
    return recipe.changed(**parse_settings(recipe, settings or []))


__all__ = ["RECIPES", "Recipe", "load"]
