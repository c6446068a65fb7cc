"""`paramdelta extract`: store a Δ as a folder of its own."""

import json
from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli import recipe as options


def extract(
    post: Annotated[str, typer.Option(metavar="P", help="Post-trained model: as for mix.")],
    base: Annotated[str, typer.Option(metavar="B", help="The base that it was trained from.")],
    out: Annotated[Path, typer.Option(metavar="Δ", help="The folder to write.")],
    allow: options.Allow = None,
    vocabulary: options.Vocabulary = None,
    maps: options.Map = None,
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="At most so much of post in a weight file.")
    ] = "5GB",
    memory: options.Memory = "256MB",
    workers: options.Workers = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier Δ once the new one is whole.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Store Δ = Θ_post − Θ_base once: exact and compressed, for --delta of plan and mix.

    Whole or not at all; a run that was stopped begins again.
    """
    from paramdelta import api
    from paramdelta.cli import show
    from paramdelta.planning.plan import summary

    plan = api.plan_extract(
        post, base, maps=maps or (), vocabulary=vocabulary or "auto", allow=allow or ()
    )
    if as_json:
        typer.echo(json.dumps({"event": "plan", **summary(plan)}, ensure_ascii=False))
    else:
        show.findings(plan)
    with show.progress_bar("extracting", as_json) as progress:
        result = api.extract(
            plan,
            out,
            shard_size=shard_size,
            memory=memory,
            workers=workers,
            overwrite=overwrite,
            progress=progress.mix,
        )
    show.extracted(result, as_json)
