"""A reader: the open stores of one run, shared by all of its threads."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from paramdelta.errors import CheckpointError, ParamDeltaError
from paramdelta.storage.blob import Blob
from paramdelta.storage.readahead import REQUESTS, ReadAhead, Run
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
    ``count``: bytes read so far, without what `prefetch` brought. ``digests``: gets every byte that
    is read. ``fetched``: bytes that came from places with a grain.

    A reader can be pickled: the copy opens its own stores. Usable as a context manager.
    """

    def __init__(
        self, *, once: bool = False, ahead: bool = False, digests: "Digests | None" = None
    ) -> None:
        self.once = once
        self.ahead = ahead
        self.digests = digests
        self.count = self.fetched = 0
        self._held: dict[Blob, list[tuple[int, memoryview]]] = {}
        self._announced: Callable[[], Iterable[Run]] | None = None
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
        held = self._find(blob, offset, len(into)) if self._held else None
        if held is not None:
            into[:] = held
        else:
            self._read(blob, offset, into)
        if self.digests is not None:
            self.digests.update(blob, offset, into)

    def read_many(
        self, blob: Blob, offsets: "npt.NDArray[np.int64]", into: memoryview, among: range
    ) -> None:
        """See `Store.read_many`."""
        store = self._store(blob.url)
        store.read_many(blob, offsets, into, among)
        self._add(store, len(into))

    def follow(self, runs: Callable[[], Iterable[Run]]) -> None:
        """Say what will be read, in about this order, so that places with a grain are read ahead.

        ``runs`` is called once for each kind of place.
        """
        self._announced = runs
        for scheme, store in list(self._stores.items()):
            self._announce(scheme, store)

    def prefetch(self, runs: Iterable[Run]) -> None:
        """Read some runs from places with a grain, many at once, and hold them for `read`.

        What fails here fails again, with its error, when it is read.
        """
        far = [
            (blob, start, stop)
            for blob, start, stop in runs
            if self._is_far(blob) and start < stop and self._find(blob, start, stop - start) is None
        ]

        def fetch(run: Run) -> None:
            blob, start, stop = run
            data = memoryview(bytearray(stop - start))
            with contextlib.suppress(ParamDeltaError):
                self._read(blob, start, data)
                self._held.setdefault(blob, []).append((start, data))

        if far:
            with ThreadPoolExecutor(min(2 * REQUESTS, len(far)), "paramdelta-prefetch") as pool:
                list(pool.map(fetch, far))

    def is_held(self, blob: Blob) -> bool:
        """Whether `prefetch` brought some of a blob."""
        return blob in self._held

    def get(self, blob: Blob, offset: int = 0, length: int | None = None) -> bytes:
        """Some bytes of a blob, by default all of them; raises as `Store.read`."""
        data = bytearray(blob.size - offset if length is None else length)
        self.read(blob, offset, memoryview(data))
        return bytes(data)

    def small(self, blob: Blob, limit: int) -> bytes:
        """All of a small file.

        Raises:
            CheckpointError: it is larger than ``limit`` bytes; nothing was read.
        """
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
            self._held.clear()

    def _is_far(self, blob: Blob) -> bool:
        store = self._store(blob.url)
        return isinstance(store, ReadAhead) or store.grain > 0

    def _find(self, blob: Blob, offset: int, length: int) -> memoryview | None:
        for start, data in self._held.get(blob, ()):
            if start <= offset and offset + length <= start + len(data):
                return data[offset - start : offset - start + length]
        return None

    def _read(self, blob: Blob, offset: int, into: memoryview) -> None:
        store = self._store(blob.url)
        store.read(blob, offset, into)
        self._add(store, len(into))

    def _add(self, store: Store, size: int) -> None:
        with self._lock:
            self.count += size
            self.fetched += size if store.grain else 0

    def _announce(self, scheme: str, store: Store) -> None:
        if self._announced is not None and isinstance(store, ReadAhead):
            runs: Iterator[Run] = (r for r in self._announced() if scheme_of(r[0].url) == scheme)
            store.follow(runs)

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
                        self._announce(scheme, store)
                    self._stores[scheme] = store
        return store
