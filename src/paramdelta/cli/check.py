"""`paramdelta check`: is this folder a checkpoint that works?"""

import json
from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli import recipe as options


def check(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a model, made by anyone.")
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse NaN and infinities, not only warn.")
    ] = False,
    load: Annotated[
        bool,
        typer.Option(
            "--load", help="Load it with the library that it is for, and generate a few tokens."
        ),
    ] = False,
    headers: Annotated[
        bool, typer.Option("--headers", help="Do not read the numbers, only headers and files.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Look at a folder as a loader does, knowing nothing of how it was made.

    Runs offline and runs no code of the folder. Exits with 3 if anything is refused.
    """
    from paramdelta.check import check as look
    from paramdelta.cli import show

    with show.progress_bar("checking", as_json) as progress:
        report = look(folder, strict=strict, load=load, values=not headers, progress=progress.check)
    if as_json:
        typer.echo(json.dumps({"event": "check", **report.facts}, ensure_ascii=False))
    else:
        show.checked(report)
    if not report.passed:
        raise typer.Exit(3)
