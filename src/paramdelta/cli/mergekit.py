"""`paramdelta recipe import`: a mergekit configuration as a recipe."""

import json
from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli import recipe as options


def import_(
    config: Annotated[
        Path, typer.Argument(metavar="MERGEKIT.yml", help="A configuration of mergekit 0.1.5.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="RECIPE.yaml", help="Write it there, not here.")
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Layers that lists of numbers go over.  [default: as config.json of the base has]",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Turn a mergekit configuration into a recipe, and say what that does not express.

    task_arithmetic, linear, ties, dare_linear and dare_ties; others are no sums of Δ.
    """
    from paramdelta.errors import UsageError
    from paramdelta.recipe.mergekit import import_mergekit
    from paramdelta.storage.local import write_text

    made = import_mergekit(config, layers)
    if out is not None:
        if out.exists():
            raise UsageError("the recipe exists already", where=str(out), remedy="choose another")
        write_text(out, made.to_yaml())
    if as_json:
        notes = [{"key": key, "what": what} for key, what in made.notes]
        facts = {"event": "imported", "recipe": made.recipe.to_dict(), "notes": notes}
        typer.echo(json.dumps(facts, ensure_ascii=False))
    elif out is None:
        typer.echo(made.to_yaml(), nl=False)
    else:
        typer.echo(f"{out}: {made.recipe.symbols}")
        for key, what in made.notes:
            typer.echo(f"  {key}: {what}")
