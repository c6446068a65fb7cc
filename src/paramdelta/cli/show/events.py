"""Events: one JSON object a line."""

import json
from typing import Any

from paramdelta.cli.show.terminal import say


def emit(event: str, **facts: Any) -> None:
    """Print an event. Characters beyond ASCII are escaped, so every terminal and pipe takes it."""
    # JSON leaves one control character of ASCII as it is.
    say(json.dumps({"event": event, **facts}).replace("\x7f", "\\u007f"), asked=True)
