"""`paramdelta mix`: write the mix as a checkpoint."""

from typing import Annotated

import typer

from paramdelta.cli.options import (
    CheckOptions,
    Json,
    OutputOptions,
    RecipeOptions,
    RunOptions,
)


def mix(
    recipe: RecipeOptions,
    output: OutputOptions,
    run: RunOptions,
    looking: CheckOptions,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="The folder to write.  [required]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Mix checkpoints: Θ = Θ_new_base + α · (Θ_post − Θ_base), exactly, all or nothing.

    A run that was killed is resumed by the same command.
    """
    from paramdelta import api
    from paramdelta.cli.show.plan import show_start
    from paramdelta.cli.show.progress import reporter
    from paramdelta.cli.show.results import show_mix
    from paramdelta.errors import UsageError
    from paramdelta.output.place import check_local

    if out is None:
        raise UsageError(
            "missing --out", code="missing-option", expected="--out DIR, the folder to write"
        )
    check_local(out)
    plan = api.plan(recipe.recipe())
    show_start(plan, as_json)
    with reporter("mixing", as_json) as progress:
        result = api.mix(
            plan,
            out,
            shard_size=output.shard_size,
            memory=run.memory,
            workers=run.workers,
            overwrite=output.overwrite,
            fresh=output.fresh,
            check=looking.check,
            strict=looking.strict,
            progress=progress.mix,
        )
    show_mix(result, as_json)
