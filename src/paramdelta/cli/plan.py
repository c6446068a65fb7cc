"""`paramdelta plan`: what a mix would do."""

from typing import Annotated

import typer

from paramdelta.cli.options import Json, RecipeOptions, RunOptions


def plan(
    recipe: RecipeOptions,
    run: RunOptions,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest weight file.")] = "5GB",
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where the mix would go: check its path and disk."),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Every tensor and its terms.")] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="TENSOR",
            help="Only this: formula, operands and rules of a tensor, or of all that a glob "
            "matches ('*.0.mlp*').",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a mix would do, from headers alone: seconds, nothing is written.

    Exits with 3 if the mix would be refused.
    """
    from paramdelta import api
    from paramdelta.cli.show.explanation import show_explanations
    from paramdelta.cli.show.plan import show_plan
    from paramdelta.output.place import check_out

    if out is not None:
        check_out(out)
    made = api.plan(recipe.recipe())
    if explain is not None:
        show_explanations(api.explain(made, explain), as_json)
        return
    show_plan(
        made,
        api.budget_for(made, run.memory, run.workers),
        api.layout_for(made, shard_size),
        api.free_disk(out or "out"),
        tensors,
        as_json,
    )
    made.check()
    if out is not None:
        api.check_place(made, out, shard_size=shard_size, overwrite=True)
