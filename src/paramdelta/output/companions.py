"""Writes the small files beside the weights, as the plan chose them."""

import json
from pathlib import Path

from paramdelta.formats.checkpoint import read_json
from paramdelta.planning.companions import Companion
from paramdelta.storage.local import read_bytes, write_bytes, write_text


def write_companions(companions: tuple[Companion, ...], folder: Path) -> None:
    """Copy each companion into the folder, with its changes if it has any.

    Raises:
        CheckpointError: a file to be changed is not a JSON object.
        StorageError: reading or writing failed.
    """
    for companion in companions:
        target = folder / companion.name
        if not companion.changes:
            write_bytes(target, read_bytes(companion.source))
            continue
        content = read_json(companion.source)
        for key, value in companion.changes:
            if value is None:
                content.pop(key, None)
            else:
                content[key] = value
        write_text(target, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
