"""`paramdelta recipe show`: a recipe as a formula."""

import json
from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli import recipe as options


def show(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")],
    as_json: options.Json = False,
) -> None:
    """Print a recipe as its formula, with the scales of its Δ as tables; opens no checkpoint."""
    from paramdelta.cli import show as printed
    from paramdelta.recipe import read_recipe

    read = read_recipe(recipe)
    if as_json:
        facts = {"event": "recipe", "formula": read.symbols, **read.to_dict()}
        typer.echo(json.dumps(facts, ensure_ascii=False))
    else:
        printed.formula(read)
