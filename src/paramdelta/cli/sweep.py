"""`paramdelta sweep`: write the mixes at several scales, from one pass over the sources."""

from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli import recipe as options


def sweep(
    recipe: options.RecipeFile = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="α,…",
            help="Factors, each for an output of its own; each multiplies every Δ's own scale.  "
            "[required]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the folders scale-… are written.  [required]"),
    ] = None,
    post: options.Post = None,
    base: options.Base = None,
    delta: options.StoredDelta = None,
    new_base: options.NewBase = None,
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
        typer.Option("--overwrite", help="Replace earlier outputs once the new ones are whole."),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw an unfinished run away instead of resuming it.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Mix at several scales at once: DIR/scale-0.5 and so on, each a whole checkpoint.

    The sources are read once. Tensors that no scale changes are one file on disk, with a hard link
    in every folder. A run that was killed is resumed by the same command; outputs that are finished
    are kept.
    """
    from paramdelta import api
    from paramdelta.cli import show
    from paramdelta.errors import UsageError

    if out is None or scale is None:
        missing = "--out" if scale is not None else "--scale"
        raise UsageError(f"missing {missing}", expected="--scale 0.5,0.75,1.0 --out DIR, say")
    try:
        scales = [float(text) for text in scale.split(",")]
    except ValueError:
        raise UsageError(
            "these are no scales", expected="numbers with commas: 0.5,0.75,1.0", got=scale
        ) from None
    chosen = options.make_recipe(
        recipe,
        post,
        base,
        new_base,
        None,
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
    with show.progress_bar("sweeping", as_json) as progress:
        result = api.sweep(
            chosen,
            scales,
            out,
            shard_size=shard_size,
            memory=memory,
            workers=workers,
            overwrite=overwrite,
            fresh=fresh,
            planned=lambda made: show.sweeping(made, as_json),
            progress=progress.mix,
        )
    show.swept(result, as_json)
