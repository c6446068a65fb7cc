"""Events: one JSON object a line."""

import json
from typing import Any

from paramdelta.cli.show.terminal import say

SCHEMA = 1
"""Version of the events: see `cli/events.schema.json`."""


def emit(event: str, **facts: Any) -> None:
    """Print an event. Characters beyond ASCII are escaped, so every terminal and pipe takes it."""
    # JSON leaves one control character of ASCII as it is.
    say(
        json.dumps({"event": event, "schema": SCHEMA, **facts}).replace("\x7f", "\\u007f"),
        asked=True,
    )
