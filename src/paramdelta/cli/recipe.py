"""`paramdelta recipe`: what a recipe says, and recipes from mergekit."""

from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli.options import Json


def show(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")],
    as_json: Json = False,
) -> None:
    """Print a recipe as its formula, with the scales of its Δ as tables; opens no checkpoint."""
    from paramdelta.cli.show.recipe import show_recipe
    from paramdelta.recipe import read_recipe

    show_recipe(read_recipe(recipe), as_json)


def import_(
    config: Annotated[
        Path, typer.Argument(metavar="MERGEKIT.yml", help="A configuration of mergekit 0.1.5.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE.yaml", help="Write the recipe to this file."),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Layers that lists of numbers are spread over.  [default: as in config.json of "
            "the base]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a mergekit configuration to a recipe, and list what the recipe does not express.

    Methods: task_arithmetic, linear, ties, dare_linear and dare_ties.
    """
    from paramdelta.cli.show.results import show_import
    from paramdelta.errors import UsageError
    from paramdelta.recipe.mergekit import import_mergekit
    from paramdelta.storage.local import write_text

    made = import_mergekit(config, layers)
    if out is not None:
        if out.exists():
            raise UsageError(
                "the recipe exists already",
                code="recipe-exists",
                where=str(out),
                remedy="choose another",
            )
        write_text(out, made.to_yaml())
    show_import(made, out, as_json)
