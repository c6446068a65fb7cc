"""Writes the small files beside the weights, as the plan chose them."""

import json
from pathlib import Path

from paramdelta.planning.companions import Companion
from paramdelta.planning.vocabulary import MOST
from paramdelta.storage.files import parse_json
from paramdelta.storage.local import write_bytes, write_text
from paramdelta.storage.reader import Reader


def write_companions(companions: tuple[Companion, ...], folder: Path, reader: Reader) -> None:
    """Copy each companion into the folder, with its changes if it has any.

    Raises:
        CheckpointError: a file to be changed is not a JSON object.
        StorageError: reading or writing failed.
    """
    for companion in companions:
        target = folder / companion.name
        if not companion.changes:
            write_bytes(target, reader.small(companion.source, MOST))
            continue
        content = parse_json(reader.small(companion.source, MOST), str(companion.source))
        for key, value in companion.changes:
            if value is None:
                content.pop(key, None)
            else:
                content[key] = value
        write_text(target, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
