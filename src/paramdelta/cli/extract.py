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
    form: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="FORM",
            help="delta: exact, for paramdelta; lora: nearly, as an adapter for PEFT and vLLM.",
        ),
    ] = "delta",
    rank: Annotated[
        int | None, typer.Option(metavar="R", help="Of an adapter: rank of every linear weight.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Instead: the least rank that keeps this share of its Δ's energy."
        ),
    ] = None,
    max_rank: Annotated[
        int | None,
        typer.Option(metavar="R", help="The largest rank for --energy.  [default: 256]"),
    ] = None,
    embeddings: Annotated[
        bool,
        typer.Option("--embeddings", help="Factors for embeddings and output head as well."),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="Of the adapter: auto (post's, if of 16 bits, else f32), bf16, …"
        ),
    ] = None,
    allow: options.Allow = None,
    vocabulary: options.Vocabulary = None,
    maps: options.Map = None,
    shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="At most so much of post in a weight file.  [default: 5GB]"
        ),
    ] = None,
    memory: options.Memory = "256MB",
    workers: options.Workers = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier Δ once the new one is whole.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Store Δ = Θ_post − Θ_base once: exact and compressed, for --delta of plan and mix.

    With --as lora the nearest LoRA adapter, and how near it is. Whole or not at all; a run that was
    stopped begins again.
    """
    from paramdelta import api
    from paramdelta.cli import show
    from paramdelta.errors import UsageError
    from paramdelta.planning.plan import summary

    of_adapters = {"--rank": rank, "--energy": energy, "--max-rank": max_rank, "--dtype": dtype}
    of_adapters["--embeddings"] = embeddings or None
    strange = of_adapters if form == "delta" else {"--shard-size": shard_size}
    if form not in ("delta", "lora"):
        raise UsageError(f"--as {form} is not known", expected="delta or lora")
    for name, value in strange.items():
        if value is not None:
            raise UsageError(f"{name} says nothing of --as {form}", remedy="leave it out")
    plan = api.plan_extract(
        post, base, maps=maps or (), vocabulary=vocabulary or "auto", allow=allow or ()
    )
    if as_json:
        typer.echo(json.dumps({"event": "plan", **summary(plan)}, ensure_ascii=False))
    else:
        show.findings(plan)
    with show.progress_bar("extracting", as_json) as progress:
        if form == "lora":
            adapter = api.extract_adapter(
                plan,
                out,
                rank=rank,
                energy=energy,
                max_rank=api.MAX_RANK if max_rank is None else max_rank,
                embeddings=embeddings,
                dtype=dtype or "auto",
                memory=memory,
                workers=workers,
                overwrite=overwrite,
                progress=progress.mix,
            )
        else:
            result = api.extract(
                plan,
                out,
                shard_size=shard_size or api.SHARD_SIZE,
                memory=memory,
                workers=workers,
                overwrite=overwrite,
                progress=progress.mix,
            )
    if form == "lora":
        show.adapter(adapter, as_json)
    else:
        show.extracted(result, as_json)
