"""Read-ahead: reads a store in requests of its own grain, ahead of the reader.

The engine reads runs of about 1 MiB. A place behind a network is fast only with larger requests and
several at once. `ReadAhead` cuts every blob into chunks of the store's grain, requests each chunk
once, requests the next ones before they are asked for, and drops a chunk when all of it was read.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paramdelta.storage.blob import Blob
from paramdelta.storage.store import Store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

AHEAD = 2  # chunks that are requested before they are asked for, per blob
REQUESTS = 8  # requests at a time


@dataclass
class _Chunk:
    """A chunk on its way. ``left``: bytes of it that were not read yet."""

    data: Future[bytes]
    left: int


class ReadAhead:
    """A store that serves any read of another store from chunks of that store's grain.

    ``memory``: bytes of chunks to hold at most, but at least `REQUESTS` chunks.
    """

    grain = 0

    def __init__(self, store: Store, memory: int) -> None:
        self.store = store
        self._most = max(REQUESTS, memory // store.grain)
        self._chunks: OrderedDict[tuple[Blob, int], _Chunk] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(REQUESTS, "paramdelta-read-ahead")

    def list(self, url: str) -> dict[str, Blob]:
        """As the store."""
        return self.store.list(url)

    def read(self, blob: Blob, offset: int, into: memoryview) -> None:
        """Copy from the chunks that hold the run; waits for those that are on their way."""
        grain, stop = self.store.grain, offset + len(into)
        if stop > blob.size:  # past the end: let the store say so
            self.store.read(blob, offset, into)
            return
        for number in range(offset // grain, -(-stop // grain)):
            begin = max(offset, number * grain)
            end = min(stop, (number + 1) * grain)
            data = self._get(blob, number)
            into[begin - offset : end - offset] = data[
                begin - number * grain : end - number * grain
            ]
            self._release(blob, number, end - begin)

    def read_many(
        self, blob: Blob, offsets: "npt.NDArray[np.int64]", into: memoryview, among: range
    ) -> None:
        """Let the store gather: scattered parts may be far apart."""
        self.store.read_many(blob, offsets, into, among)

    def close(self) -> None:
        """Stop all requests and close the store."""
        self._pool.shutdown(cancel_futures=True)
        self._chunks.clear()
        self.store.close()

    def _get(self, blob: Blob, number: int) -> bytes:
        last = -(-blob.size // self.store.grain)
        with self._lock:
            chunk = self._request(blob, number)
            for ahead in range(number + 1, min(number + 1 + AHEAD, last)):
                if len(self._chunks) < self._most:
                    self._request(blob, ahead)
        try:
            return chunk.data.result()
        except BaseException:
            with self._lock:  # the next reader tries again
                self._chunks.pop((blob, number), None)
            raise

    def _request(self, blob: Blob, number: int) -> _Chunk:
        """The chunk, requested if it is not there; the lock is held."""
        key = blob, number
        if key not in self._chunks:
            while len(self._chunks) >= self._most and self._drop_oldest():
                pass
            start = number * self.store.grain
            size = min(self.store.grain, blob.size - start)
            self._chunks[key] = _Chunk(self._pool.submit(self._fetch, blob, start, size), size)
        self._chunks.move_to_end(key)
        return self._chunks[key]

    def _drop_oldest(self) -> bool:
        key = next((k for k, chunk in self._chunks.items() if chunk.data.done()), None)
        if key is not None:
            del self._chunks[key]
        return key is not None

    def _fetch(self, blob: Blob, start: int, size: int) -> bytes:
        data = bytearray(size)
        self.store.read(blob, start, memoryview(data))
        return bytes(data)

    def _release(self, blob: Blob, number: int, count: int) -> None:
        with self._lock:
            chunk = self._chunks.get((blob, number))
            if chunk is not None:
                chunk.left -= count
                if chunk.left <= 0:
                    del self._chunks[blob, number]
