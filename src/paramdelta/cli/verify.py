"""`paramdelta verify`: recompute an output from its sources and compare."""

from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli import recipe as options


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that mix wrote.")],
    sample: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Share of each tensor to compare.  [default: 1%]"),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Compare every number.")] = False,
    as_json: options.Json = False,
) -> None:
    """Recompute an output from its sources by an independent path and compare the bytes.

    Exits with 3 at the first difference.
    """
    from paramdelta import api
    from paramdelta.cli import show
    from paramdelta.errors import UsageError
    from paramdelta.units import parse_share

    if full and sample is not None:
        raise UsageError("--sample and --full exclude each other")
    share = 1.0 if full else parse_share(sample or "1%")
    with show.progress_bar("verifying", as_json) as progress:
        result = api.verify(folder, share=share, progress=progress.verify)
    show.verified(result, folder, as_json)
