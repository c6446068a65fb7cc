"""`paramdelta extract`: store a Δ as a separate folder."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli.options import FitChoices, Json, RunOptions, folder_to_write


class Form(str, Enum):
    """How a Δ is stored."""

    delta = "delta"
    lora = "lora"


def extract(
    choices: FitChoices,
    run: RunOptions,
    post: Annotated[str, typer.Option(metavar="P", help="Post-trained model: as for mix.")],
    base: Annotated[str, typer.Option(metavar="B", help="The base that post was trained from.")],
    out: Annotated[
        Path, typer.Option(metavar="Δ", parser=folder_to_write, help="The folder to write.")
    ],
    form: Annotated[
        Form,
        typer.Option(
            "--as",
            help="delta: exact, for paramdelta; lora: approximate, an adapter for PEFT and vLLM.",
        ),
    ] = Form.delta,
    rank: Annotated[
        int | None,
        typer.Option(metavar="R", help="For an adapter: the rank of every linear weight."),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Instead: the smallest rank that keeps this share of the Δ's energy.",
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
            metavar="TYPE",
            help="Of the adapter: auto (post's if it has 16 bits, else f32), bf16, …",
        ),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="At most this much of post in a weight file.  [default: 5GB]"
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an earlier Δ once the new one is complete."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Store Δ = Θ_post − Θ_base once: exact and compressed, for --delta of plan and mix.

    With --as lora: the closest LoRA adapter, and how close it is. All or nothing; a run that was
    stopped starts again.
    """
    from paramdelta import api
    from paramdelta.cli.show.plan import show_start
    from paramdelta.cli.show.progress import reporter
    from paramdelta.cli.show.results import show_adapter, show_extract
    from paramdelta.errors import UsageError

    of_adapters = {
        "--rank": rank,
        "--energy": energy,
        "--max-rank": max_rank,
        "--dtype": dtype,
        "--embeddings": embeddings or None,
    }
    unused = of_adapters if form is Form.delta else {"--shard-size": shard_size}
    for name, value in unused.items():
        if value is not None:
            raise UsageError(
                f"{name} has no effect with --as {form.value}",
                code="option-without-effect",
                remedy="leave it out",
            )
    plan = api.plan_extract(post, base, **choices.given)
    show_start(plan, as_json, formula=False)
    with reporter("extracting", as_json) as progress:
        if form is Form.lora:
            adapter = api.extract_adapter(
                plan,
                out,
                rank=rank,
                energy=energy,
                max_rank=api.MAX_RANK if max_rank is None else max_rank,
                embeddings=embeddings,
                dtype=dtype or "auto",
                memory=run.memory,
                workers=run.workers,
                overwrite=overwrite,
                progress=progress.mix,
            )
        else:
            result = api.extract(
                plan,
                out,
                shard_size=shard_size or api.SHARD_SIZE,
                memory=run.memory,
                workers=run.workers,
                overwrite=overwrite,
                progress=progress.mix,
            )
    if form is Form.lora:
        show_adapter(adapter, as_json)
    else:
        show_extract(result, as_json)
