"""The small files beside the weights, as the plan chose them, with their changes."""

from collections.abc import Iterable

from paramdelta.documents import to_json
from paramdelta.planning.companions import Companion
from paramdelta.planning.vocabulary import MOST
from paramdelta.storage.files import parse_json
from paramdelta.storage.reader import Reader


def contents(companions: Iterable[Companion], reader: Reader) -> dict[str, bytes]:
    """What each companion of the output holds, by name.

    Raises:
        CheckpointError: a file is too large, or one that is changed is not a JSON object.
        StorageError: it cannot be read.
    """
    return {companion.name: _content(companion, reader) for companion in companions}


def _content(companion: Companion, reader: Reader) -> bytes:
    data = reader.small(companion.source, MOST)
    if not companion.changes:
        return data
    content = parse_json(data, str(companion.source))
    for key, value in companion.changes:
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    return to_json(content).encode()
