"""Events: one JSON object a line."""

import json
from typing import Any


def emit(event: str, **facts: Any) -> None:
    """Print an event. Characters beyond ASCII are escaped, so every terminal and pipe takes it."""
    print(json.dumps({"event": event, **facts}), flush=True)  # noqa: T201 - events are the output
