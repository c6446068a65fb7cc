"""`paramdelta check`: is this folder a checkpoint that works?"""

from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli.options import Json


def check(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a model, made by anyone.")
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse NaN and infinities instead of warning.")
    ] = False,
    load: Annotated[
        bool,
        typer.Option("--load", help="Load it with its library, and generate a few tokens."),
    ] = False,
    headers: Annotated[
        bool, typer.Option("--headers", help="Read only headers and small files, not the numbers.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a folder as a loader would, whoever made it.

    Works offline and runs no code of the folder. Exits with 3 if anything is refused.
    """
    from paramdelta import api
    from paramdelta.cli.show.check import show_check
    from paramdelta.cli.show.progress import reporter

    with reporter("checking", as_json) as progress:
        report = api.check(
            folder, strict=strict, load=load, values=not headers, progress=progress.check
        )
    show_check(report, as_json)
    if not report.passed:
        raise typer.Exit(3)
