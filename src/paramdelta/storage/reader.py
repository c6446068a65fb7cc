"""A reader: the open stores of one run, shared by all of its threads."""

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from paramdelta.errors import CheckpointError
from paramdelta.storage.blob import Blob
from paramdelta.storage.readahead import ReadAhead
from paramdelta.storage.store import Store, make_store, scheme_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from paramdelta.storage.digest import Digests

READ_AHEAD = 128 << 20  # bytes of read-ahead where a store has a grain


class Reader:
    """Reads blobs wherever they are. Opens each store, and each file, once.

    ``once``: no byte is read twice, so local files that were not in the page cache need not stay
    there. ``ahead``: reads go through tensors in order, so places with a grain are read ahead.
    ``count``: bytes read so far. ``digests``: gets every byte that is read.

    A reader can be pickled: the copy opens its own stores. Usable as a context manager.
    """

    def __init__(
        self, *, once: bool = False, ahead: bool = False, digests: "Digests | None" = None
    ) -> None:
        self.once = once
        self.ahead = ahead
        self.digests = digests
        self.count = 0
        self._stores: dict[str, Store] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"once": self.once, "ahead": self.ahead}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def list(self, url: str) -> dict[str, Blob]:
        """See `Store.list`."""
        return self._store(url).list(url)

    def read(self, blob: Blob, offset: int, into: memoryview) -> None:
        """See `Store.read`."""
        self._store(blob.url).read(blob, offset, into)
        with self._lock:
            self.count += len(into)
        if self.digests is not None:
            self.digests.update(blob, offset, into)

    def read_many(
        self, blob: Blob, offsets: "npt.NDArray[np.int64]", into: memoryview, among: range
    ) -> None:
        """See `Store.read_many`."""
        self._store(blob.url).read_many(blob, offsets, into, among)
        with self._lock:
            self.count += len(into)

    def get(self, blob: Blob, offset: int = 0, length: int | None = None) -> bytes:
        """Some bytes of a blob, by default all of them; raises as `Store.read`."""
        data = bytearray(blob.size - offset if length is None else length)
        self.read(blob, offset, memoryview(data))
        return bytes(data)

    def small(self, blob: Blob, limit: int) -> bytes:
        """All of a small file.

        Raises:
            CheckpointError: it is larger than ``limit`` bytes, or out of its folder; nothing was
                read. What is read here travels into outputs, and a link in a checkpoint from
                elsewhere can lead to any file of the user.
        """
        if blob.outside:
            raise CheckpointError(
                "the link leads out of the folder",
                code="link-outside",
                where=str(blob),
                expected="a file in the folder of the checkpoint, or a link to one",
                remedy="if you know this file, put a copy of it in the folder",
            )
        if blob.size > limit:
            raise CheckpointError(
                "the file is too large for what it should be",
                code="file-too-large",
                where=str(blob),
                expected=f"at most {limit} bytes",
                got=f"{blob.size} bytes",
            )
        return self.get(blob)

    def close(self) -> None:
        """Close all stores. Reading again opens them again."""
        with self._lock, contextlib.ExitStack() as stack:
            for store in self._stores.values():
                stack.callback(store.close)
            self._stores.clear()

    def _store(self, url: str) -> Store:
        scheme = scheme_of(url)
        store = self._stores.get(scheme)
        if store is None:
            with self._lock:
                store = self._stores.get(scheme)
                if store is None:
                    store = make_store(scheme, self.once)
                    if self.ahead and store.grain:
                        store = ReadAhead(store, READ_AHEAD)
                    self._stores[scheme] = store
        return store
