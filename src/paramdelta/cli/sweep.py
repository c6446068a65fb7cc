"""`paramdelta sweep`: write the mixes at several scales, from one pass over the sources."""

from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli.options import (
    CheckOptions,
    Json,
    OutputOptions,
    RecipeOptions,
    RunOptions,
    folder_to_write,
)


def sweep(
    recipe: RecipeOptions,
    output: OutputOptions,
    run: RunOptions,
    looking: CheckOptions,
    scale: Annotated[
        str | None,
        typer.Option(
            "--scale",
            "--alpha",
            metavar="α,…",
            help="Factors, one for each output; each multiplies every Δ's own scale.  [required]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=folder_to_write,
            help="Where the folders scale-… are written.  [required]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Mix at several scales at once: DIR/scale-0.5 and so on, each a complete checkpoint.

    The sources are read once. Tensors that no scale changes are one file on disk, with a hard link
    in every folder. A run that was killed is resumed by the same command; outputs that are finished
    are kept.
    """
    from paramdelta import api
    from paramdelta.cli.show.progress import reporter
    from paramdelta.cli.show.results import show_sweep, show_sweep_start
    from paramdelta.errors import UsageError

    if out is None or scale is None:
        missing = "--out" if scale is not None else "--scale"
        raise UsageError(
            f"missing {missing}",
            code="missing-option",
            expected="for example --scale 0.5,0.75,1.0 --out DIR",
        )
    try:
        scales = [float(text) for text in scale.split(",")]
    except ValueError:
        raise UsageError(
            "invalid scales",
            code="invalid-scale",
            expected="numbers separated by commas: 0.5,0.75,1.0",
            got=scale,
        ) from None
    with reporter("sweeping", as_json) as progress:
        result = api.sweep(
            recipe.recipe(),
            scales,
            out,
            shard_size=output.shard_size,
            memory=run.memory,
            workers=run.workers,
            overwrite=output.overwrite,
            fresh=output.fresh,
            check=looking.check,
            strict=looking.strict,
            keep_downloads=output.keep_downloads,
            planned=lambda made: show_sweep_start(made, as_json),
            progress=progress.mix,
        )
    show_sweep(result, as_json)
