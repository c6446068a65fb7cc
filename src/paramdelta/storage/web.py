"""Files behind plain HTTP(S): a weight file, or a folder whose index names the weights.

HTTP has no lists of files. In a folder, the names that model folders usually hold are tried, and
the weight files are those of model.safetensors.index.json.
"""

import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from paramdelta import documents
from paramdelta.errors import StorageError, UsageError
from paramdelta.storage.blob import Blob
from paramdelta.storage.filekinds import is_weights
from paramdelta.storage.http import AT_ONCE, GRAIN, RemoteFile, Target, Transport

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MOST_INDEX = 64_000_000  # bytes
INDEXES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
KNOWN = (
    *INDEXES,
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "paramdelta.delta.json",
    "paramdelta.lock.json",
    "LICENSE",
    "README.md",
)
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")


class WebStore:
    """Files at ``https://`` addresses as a `Store`."""

    grain = GRAIN

    def __init__(self, once: bool) -> None:
        self._transport = Transport()
        self._files: dict[Blob, RemoteFile] = {}
        self._lock = threading.Lock()

    def list(self, url: str) -> dict[str, Blob]:
        """See `Store.list`. Raises UsageError for an address that holds a secret."""
        parts = urlsplit(url)
        if parts.query or parts.fragment or parts.username or parts.password:
            raise UsageError(
                "an address with a query or a password cannot be recorded",
                code="unsupported-address",
                where=f"{parts.scheme}://{parts.hostname}{parts.path}",
                expected="an address that can be read without a secret in it",
                remedy="download the files to a folder first",
            )
        if is_weights(parts.path) or parts.path.endswith(".gguf"):
            return self._found(url.rpartition("/")[0], [url.rpartition("/")[2]])
        found = self._found(url, KNOWN)
        shards: set[str] = set()
        for name in INDEXES:
            if name in found:
                shards |= set(self._shards(found[name]))
        return {**found, **self._found(url, sorted(shards - found.keys()))}

    def read(self, blob: Blob, offset: int, into: memoryview) -> None:
        """See `Store.read`."""
        self._transport.read(self._file(blob), offset, into)

    def read_many(
        self, blob: Blob, offsets: "npt.NDArray[np.int64]", into: memoryview, among: range
    ) -> None:
        """See `Store.read_many`."""
        self._transport.read_many(self._file(blob), offsets, into)

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def _found(self, folder: str, names: Iterable[str]) -> dict[str, Blob]:
        """Those of some names that are there."""
        names = list(names)
        with ThreadPoolExecutor(AT_ONCE, "paramdelta-list") as pool:
            blobs = pool.map(lambda name: self._look(f"{folder}/{quote(name)}"), names)
            return {n: blob for n, blob in zip(names, blobs, strict=True) if blob is not None}

    def _look(self, url: str) -> Blob | None:
        headers = self._transport.head(url, Target(url))
        if headers is None:
            return None
        size = headers.get("Content-Length", "")
        if not size.isdigit():
            raise StorageError(
                "the server does not say how large the file is",
                code="no-ranges",
                where=url,
                expected="an answer with Content-Length",
                remedy="download the files to a folder first",
            )
        version = headers.get("ETag") or headers.get("Last-Modified") or ""
        return Blob(url, int(size), version)

    def _shards(self, index: Blob) -> tuple[str, ...]:
        """The weight files that an index names, as far as they are names of files beside it."""
        if index.size > MOST_INDEX:
            return ()
        data = bytearray(index.size)
        self.read(index, 0, memoryview(data))
        try:
            index_json = documents.parse_json(bytes(data))
        except ValueError:
            return ()  # whoever reads the index says so
        mapped = index_json.get("weight_map") if isinstance(index_json, dict) else None
        names = mapped.values() if isinstance(mapped, dict) else ()
        plain = (name for name in names if isinstance(name, str) and _NAME.fullmatch(name))
        return tuple(name for name in plain if ".." not in name.split("/"))

    def _file(self, blob: Blob) -> RemoteFile:
        with self._lock:
            if blob not in self._files:
                file = RemoteFile(blob.url, blob.size, lambda _: Target(blob.url))
                if blob.version.startswith(('"', "W/")):
                    file.check(Target(blob.url), blob.version)
                self._files[blob] = file
            return self._files[blob]
