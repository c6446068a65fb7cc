"""`paramdelta card`: write the model card of an output again."""

from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli.options import Json


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that mix wrote.")],
    as_json: Json = False,
) -> None:
    """Write README.md of a mix again, from its lock and the cards of its sources.

    For example after a new name, or after a source has stated its license.
    """
    from paramdelta import api
    from paramdelta.cli.show.events import emit
    from paramdelta.cli.show.terminal import say

    path = api.card(folder)
    if as_json:
        emit("done", card=str(path))
    else:
        say(f"{path}: written")
