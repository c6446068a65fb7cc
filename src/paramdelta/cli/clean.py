"""`paramdelta clean`: remove what unfinished runs left."""

from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli.options import Json


def clean(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="The folder in which outputs are made.")
    ] = Path(),
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove them; without it, they are only listed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List unfinished outputs in a folder, which the same mix would resume; --remove removes them.

    An output that a run is writing at this moment is never touched.
    """
    from datetime import datetime

    from paramdelta.cli.show.events import emit
    from paramdelta.cli.show.terminal import say
    from paramdelta.output.abandoned import find_abandoned
    from paramdelta.units import show_size

    found = list(find_abandoned(folder))
    for one in found:
        if remove and not one.busy:
            one.remove()
        state = "in use" if one.busy else "removed" if remove else "unfinished"
        if as_json:
            emit("unfinished", output=str(one.out), bytes=one.size, state=state)
        else:
            when = datetime.fromtimestamp(one.changed).strftime("%Y-%m-%d %H:%M")
            say(f"{one.out}: {state}, {show_size(one.size)}, last changed {when}")
    free = sum(one.size for one in found if not one.busy)
    if as_json:
        emit("done", unfinished=len(found), bytes=free, removed=remove)
    elif not found:
        say("no unfinished outputs")
    elif not remove and free:
        say(f"{show_size(free)} can be freed with --remove")
