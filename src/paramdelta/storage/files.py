"""The files of one checkpoint: what is there, and the contents of the small ones."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from paramdelta import documents
from paramdelta.errors import CheckpointError
from paramdelta.storage.blob import Blob
from paramdelta.storage.location import Location
from paramdelta.storage.reader import Reader

MOST_JSON = 64_000_000  # bytes; the index of a model with 100,000 tensors is under 10 MB
POINTERS = range(100, 400)  # bytes of a Git LFS pointer, which stands for a file
_POINTER = b"version https://git-lfs"
SOON = (".json", ".jinja", ".model", ".txt", ".tiktoken")  # what is read of most checkpoints …
MOST_SOON = 32_000_000  # … up to this size, in bytes
KEPT = 1_000_000  # bytes; larger contents are not kept in memory


class Files(Mapping[str, Blob]):
    """A checkpoint's files by name, with slashes for subfolders. None beside a single weight file.

    ``stated``: by the name of a JSON file, what the weights state themselves (GGUF); `json` takes
    it where the file is absent.

    The place is listed once, and each small file is read once. A copy made by pickle reads again.
    """

    def __init__(self, location: Location, reader: Reader) -> None:
        """List a place; raises StorageError."""
        self.location = location
        self.reader = reader
        found = reader.list(location.url)
        self.single = next(iter(found.values())) if _is_single(found, location) else None
        self._blobs = {} if self.single is not None else found
        reader.prefetch(
            (blob, 0, blob.size)
            for name, blob in self._blobs.items()
            if name.endswith(SOON) and blob.size <= MOST_SOON
        )
        self.stated: Mapping[str, Mapping[str, Any]] = {}
        self._objects: dict[str, dict[str, Any]] = {}
        self._subs: dict[str, Files] = {}

    def __getitem__(self, name: str) -> Blob:
        return self._blobs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._blobs)

    def __len__(self) -> int:
        return len(self._blobs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_objects": {}, "_subs": {}}

    def sub(self, folder: str) -> "Files":
        """The files below a folder (with a slash at its end), by their names there."""
        if not folder:
            return self
        if folder not in self._subs:
            inside = copy.copy(self)
            url = f"{self.location.url.rstrip('/')}/{folder.rstrip('/')}"
            inside.location = replace(self.location, url=url)
            inside.single, inside.stated, inside._objects, inside._subs = None, {}, {}, {}
            inside._blobs = {
                name[len(folder) :]: blob
                for name, blob in self._blobs.items()
                if name.startswith(folder)
            }
            self._subs[folder] = inside
        return self._subs[folder]

    def stating(self, stated: Mapping[str, Mapping[str, Any]]) -> "Files":
        """The same files with what their weights state."""
        files = copy.copy(self)
        files.stated = stated
        return files

    def bytes(self, name: str, limit: int = MOST_JSON) -> bytes:
        """The contents of a file that is there; raises CheckpointError, StorageError."""
        data = self.reader.small(self[name], limit)
        if data.startswith(_POINTER):
            raise CheckpointError(
                "this is a Git LFS pointer, not the file itself",
                code="lfs-pointer",
                where=str(self[name]),
                remedy="run git lfs pull, or download the file again",
            )
        return data

    def text(self, name: str, limit: int = MOST_JSON) -> str:
        """The contents as text; bytes that are not UTF-8 are replaced. Raises as `bytes`."""
        return self.bytes(name, limit).decode("utf-8", errors="replace")

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object of a file; if the file is absent, what is `stated` for it, else {}.

        Raises:
            CheckpointError: not a JSON object, or larger than `MOST_JSON`.
            StorageError: it cannot be read.
        """
        if name not in self:
            return dict(self.stated.get(name, {}))
        if name in self._objects:
            return self._objects[name]
        blob = self[name]
        value = parse_json(self.bytes(name), str(blob))
        if blob.size <= KEPT:
            self._objects[name] = value
        return value


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object; raises CheckpointError."""
    try:
        value = documents.parse_json(data)
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise CheckpointError(
            "invalid JSON", code="invalid-json", where=where, got=str(error)
        ) from None
    return value


def _is_single(found: Mapping[str, Blob], location: Location) -> bool:
    return len(found) == 1 and next(iter(found.values())).url == location.url
