"""The small files beside a checkpoint's weights: tokenizer, configs, templates."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paramdelta.errors import CheckpointError
from paramdelta.formats.checkpoint import Checkpoint, parse_json
from paramdelta.storage.local import read_bytes

TEMPLATES = "additional_chat_templates"  # the folder for chat templates with names
LIMIT = 256_000_000  # bytes of one file; the largest tokenizer files have some 40 MB


class SmallFiles:
    """The files of one folder, by name with slashes. Each is read at most once.

    ``where``: the folder's address, for messages. ``readers``: by name, a function that reads the
    whole file.
    """

    def __init__(self, where: str, readers: Mapping[str, Callable[[], bytes]]) -> None:
        self.where = where
        self._readers = readers
        self._read: dict[str, bytes] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._readers))

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    def place(self, name: str) -> str:
        """How a message names one file."""
        return f"{self.where}/{name}"

    def bytes(self, name: str) -> bytes:
        """The bytes of a file, b"" if it is absent; raises StorageError or CheckpointError."""
        if name not in self._readers:
            return b""
        if name not in self._read:
            self._read[name] = self._readers[name]()
        return self._read[name]

    def text(self, name: str) -> str | None:
        """A file as UTF-8, None if it is absent; raises StorageError or CheckpointError."""
        if name not in self._readers:
            return None
        try:
            return self.bytes(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                "not UTF-8 text", where=self.place(name), got=str(error)
            ) from None

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file, {} if it is absent; raises StorageError or CheckpointError."""
        if name not in self._readers:
            return {}
        return parse_json(self.bytes(name), Path(self.place(name)))


def small_files(checkpoint: Checkpoint) -> SmallFiles:
    """The files beside a checkpoint's weights, and its named chat templates."""
    folder = checkpoint.location.folder
    found: list[Path] = []
    if folder is not None:
        for place in (folder, folder / TEMPLATES):
            found += sorted(place.iterdir()) if place.is_dir() else []
    readers = {
        path.relative_to(folder).as_posix(): _reader(path)
        for path in found
        if folder is not None and path.is_file()
    }
    return SmallFiles(checkpoint.location.address, readers)


def _reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        if (size := path.stat().st_size) > LIMIT:
            raise CheckpointError(
                "too large for a tokenizer or config file",
                where=str(path),
                expected=f"at most {LIMIT} bytes",
                got=str(size),
            )
        return read_bytes(path)

    return read
