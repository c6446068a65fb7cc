"""`paramdelta verify`: recompute an output from its sources and compare."""

from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli.options import Json, RunOptions


def verify(
    run: RunOptions,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that paramdelta wrote.")],
    sample: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Share of each tensor to compare.  [default: 1%]"),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Compare every number.")] = False,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Repeat the sample of an earlier run.")
    ] = None,
    download: Annotated[
        bool,
        typer.Option("--download", help="Read sources that are not here from the Hub."),
    ] = False,
    post: Annotated[
        str | None, typer.Option(metavar="P", help="For a stored Δ or an adapter: where post is.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="B", help="For a stored Δ or an adapter: where base is.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            envvar="PARAMDELTA_CHECK",
            help="Look at the folder as a loader does, too; see paramdelta check.",
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Recompute an output from its sources by an independent path and compare the numbers.

    Every file is compared with the content digest in the lock. Exits with 3 if anything differs,
    or the folder would not work.
    """
    from paramdelta import api
    from paramdelta.cli.show.progress import reporter
    from paramdelta.cli.show.results import show_verify
    from paramdelta.errors import UsageError
    from paramdelta.units import parse_share

    if full and sample is not None:
        raise UsageError(
            "--sample and --full exclude each other", code="options-exclude-each-other"
        )
    share = 1.0 if full else parse_share(sample or "1%")
    with reporter("verifying", as_json) as progress:
        result = api.verify(
            folder,
            share=share,
            memory=run.memory,
            workers=run.workers,
            seed=seed,
            download=download,
            post=post,
            base=base,
            progress=progress.mix,
        )
    show_verify(result, folder, as_json)
    if check:
        from paramdelta.cli.show.check import show_check

        report = api.check(folder, values=full)
        show_check(report, as_json)
        if not report.passed:
            raise typer.Exit(3)
