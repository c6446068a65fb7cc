"""`paramdelta mix`: write the mix as a checkpoint."""

import json
from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli import recipe as options


def mix(
    recipe: options.RecipeFile = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to write.  [required]")
    ] = None,
    post: options.Post = None,
    base: options.Base = None,
    delta: options.StoredDelta = None,
    new_base: options.NewBase = None,
    scale: options.Scale = None,
    preset: options.Preset = None,
    dtype: options.DType = None,
    allow: options.Allow = None,
    vocabulary: options.Vocabulary = None,
    graft: options.Graft = None,
    take: options.Take = None,
    maps: options.Map = None,
    head: options.Head = None,
    shard_size: options.ShardSize = "5GB",
    memory: options.Memory = "256MB",
    workers: options.Workers = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an earlier output once the new one is whole."),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw an unfinished run away instead of resuming it.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Mix checkpoints: Θ = Θ_new_base + α · (Θ_post − Θ_base), exactly, whole or not at all.

    A run that was killed is resumed by the same command.
    """
    from paramdelta import api
    from paramdelta.cli import show
    from paramdelta.errors import UsageError
    from paramdelta.planning.plan import summary

    if out is None:
        raise UsageError("missing --out", expected="--out DIR, the folder to write")
    chosen = options.make_recipe(
        recipe,
        post,
        base,
        new_base,
        scale,
        dtype,
        allow,
        vocabulary,
        graft,
        take,
        maps,
        head,
        preset,
        delta,
    )
    plan = api.plan(chosen)
    if as_json:
        typer.echo(json.dumps({"event": "plan", **summary(plan)}, ensure_ascii=False))
    else:
        show.brief(plan)
    with show.progress_bar("mixing", as_json) as progress:
        result = api.mix(
            plan,
            out,
            shard_size=shard_size,
            memory=memory,
            workers=workers,
            overwrite=overwrite,
            fresh=fresh,
            progress=progress.mix,
        )
    show.mixed(result, as_json)
