"""Read-ahead: reads a store in requests of its own grain, ahead of the reader.

The engine reads runs of about 1 MiB. A place behind a network is fast only with larger requests and
many at once. `ReadAhead` knows which runs will be read, in which order (`follow`). It joins runs
that follow each other in a blob into chunks of the store's grain, and keeps requests on their way
for the next chunks, in all blobs, as far as its memory goes. A chunk is dropped when all of it was
read. So each byte is requested once, whatever the order of the tensors, and none is requested that
nobody reads.

A read that was not announced gets a chunk of its own. If nothing was announced at all, the chunks
behind it are requested as well.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from paramdelta.storage.blob import Blob
from paramdelta.storage.store import Store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

AHEAD = 2  # chunks that are requested behind a read, if nothing was announced
REQUESTS = 16  # requests at a time
SOON = (
    64  # chunks that a reader may be ahead of the requests and still be found among the next ones
)
JOIN = 64 << 10  # bytes between two runs that are requested with them
SPENT = 2  # chunks that stay after they were read: some runs are read twice

Run: TypeAlias = tuple[Blob, int, int]
"""Bytes of a blob: the first, and the one behind the last."""


@dataclass(eq=False)
class _Chunk:
    """Bytes ``start`` to ``stop`` of a blob. ``left``: how many of them are still to be read."""

    blob: Blob
    start: int
    stop: int
    left: int
    data: "Future[memoryview] | None" = None


class ReadAhead:
    """A store that serves any read of another store from chunks of that store's grain.

    ``memory``: bytes of chunks to hold. A reader that needs more gets it: at most one chunk for
    each thread that reads.
    """

    grain = 0

    def __init__(self, store: Store, memory: int) -> None:
        self.store = store
        self._memory = max(memory, REQUESTS * store.grain // 2)
        self._held = 0
        self._chunks: dict[Blob, list[_Chunk]] = {}  # requested and not dropped
        self._next: deque[_Chunk] = deque()  # known and not requested
        self._coming: Iterator[_Chunk] | None = None  # not known yet
        self._open: dict[Blob, _Chunk] = {}  # what `_coming` is joining
        self._spent: deque[_Chunk] = deque()
        self._lock = threading.RLock()
        self._pool = ThreadPoolExecutor(REQUESTS, "paramdelta-read-ahead")

    def follow(self, runs: Iterable[Run]) -> None:
        """Begin to request these runs, which will be read in about this order."""
        with self._lock:
            self._coming = self._joined(runs)
            self._fill()

    def list(self, url: str) -> dict[str, Blob]:
        """As the store."""
        return self.store.list(url)

    def read(self, blob: Blob, offset: int, into: memoryview) -> None:
        """Copy from the chunks that hold the run; waits for those that are on their way."""
        stop = offset + len(into)
        if stop > blob.size:  # past the end: let the store say so
            self.store.read(blob, offset, into)
            return
        at = offset
        while at < stop:
            chunk = self._chunk(blob, at)
            end = min(stop, chunk.stop)
            into[at - offset : end - offset] = self._data(chunk)[
                at - chunk.start : end - chunk.start
            ]
            self._release(chunk, end - at)
            at = end

    def read_many(
        self, blob: Blob, offsets: "npt.NDArray[np.int64]", into: memoryview, among: range
    ) -> None:
        """Copy from chunks if the parts are in few of them; else let the store gather."""
        size, grain = len(into) // len(offsets), self.store.grain
        touched = {at // grain for offset in offsets.tolist() for at in (offset, offset + size - 1)}
        if among.stop > blob.size or len(touched) * grain > self._memory // 2:
            self.store.read_many(blob, offsets, into, among)
            return
        for number in sorted(touched):  # request all before the first one is waited for
            self._chunk(blob, max(number * grain, among.start))
        for number, offset in enumerate(offsets.tolist()):
            self.read(blob, offset, into[number * size : (number + 1) * size])

    def close(self) -> None:
        """Stop all requests and close the store."""
        with self._lock:
            self._coming = None
            self._next.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.store.close()  # ends the requests that are on their way
        self._pool.shutdown(wait=True)
        self._chunks.clear()

    def _chunk(self, blob: Blob, at: int) -> _Chunk:
        """The chunk that holds a byte, requested if it is not."""
        with self._lock:
            chunk = self._find(blob, at)
            if chunk is None:
                chunk = self._demanded(blob, at)
                self._make_room()
                self._request(chunk)
            if self._coming is None:
                self._guess(chunk)
            return chunk

    def _data(self, chunk: _Chunk) -> memoryview:
        assert chunk.data is not None
        try:
            return chunk.data.result()
        except BaseException:
            with self._lock:  # the next reader tries again
                self._drop(chunk)
            raise

    # -- what is requested; the lock is held -------------------------------------------------------

    def _joined(self, runs: Iterable[Run]) -> Iterator[_Chunk]:
        """The chunks of some runs, each before or soon after the first of its bytes is needed."""
        grain, announced = self.store.grain, 0
        begun: dict[Blob, int] = {}  # what was announced before an open chunk
        for blob, start, stop in runs:
            stop = min(stop, blob.size)
            chunk = self._open.get(blob)
            if chunk is not None and not chunk.start <= start <= chunk.stop + JOIN:
                yield self._ended(chunk)
            elif chunk is not None:
                start = max(start, chunk.stop) if start < chunk.stop else start
            announced += max(0, stop - start)
            while start < stop:
                chunk = self._open.get(blob)
                if chunk is None:
                    chunk = self._open[blob] = _Chunk(blob, start, start, 0)
                    begun[blob] = announced
                end = max(start, min(stop, chunk.start + grain))
                if end > start:
                    chunk.left += end - start
                    chunk.stop = start = end
                if chunk.stop - chunk.start >= grain or end == start < stop:
                    yield self._ended(chunk)
            # What other blobs wait for must not wait for this one to fill a chunk.
            late = announced - (len(self._open) + 1) * grain
            for other in [b for b in self._open if begun[b] < late]:
                if other in self._open:
                    yield self._ended(self._open[other])
        while self._open:
            yield self._ended(next(iter(self._open.values())))

    def _ended(self, chunk: _Chunk) -> _Chunk:
        self._open.pop(chunk.blob, None)
        return chunk

    def _fill(self) -> None:
        """Request the next chunks while there is memory for them."""
        while self._held < self._memory:
            if not self._next and not self._learn():
                return
            self._request(self._next.popleft())

    def _learn(self) -> bool:
        """Take one more announced chunk to the next ones, if there is one."""
        chunk = next(self._coming, None) if self._coming is not None else None
        if chunk is not None:
            self._next.append(chunk)
        return chunk is not None

    def _find(self, blob: Blob, at: int) -> _Chunk | None:
        for chunk in self._chunks.get(blob, ()):
            if chunk.start <= at < chunk.stop:
                return chunk
        return None

    def _demanded(self, blob: Blob, at: int) -> _Chunk:
        """The chunk for a byte that was not requested."""
        open_ = self._open.get(blob)
        if open_ is not None and open_.start <= at < open_.stop:
            return self._ended(open_)
        return self._among_next(blob, at) or self._alone(blob, at)

    def _guess(self, chunk: _Chunk) -> None:
        """Request the chunks behind one, for nothing was announced."""
        at = chunk.stop
        for _ in range(AHEAD):
            if at >= chunk.blob.size or self._held >= self._memory:
                return
            follower = self._find(chunk.blob, at)
            if follower is None:
                follower = self._alone(chunk.blob, at)
                self._request(follower)
            at = follower.stop

    def _among_next(self, blob: Blob, at: int) -> _Chunk | None:
        for number in range(SOON):
            if number >= len(self._next) and not self._learn():
                return None
            chunk = self._next[number]
            if chunk.start <= at < chunk.stop and chunk.blob == blob:
                del self._next[number]
                return chunk
        return None

    def _alone(self, blob: Blob, at: int) -> _Chunk:
        """A chunk from a byte on, up to a multiple of the grain or to what was requested before."""
        grain = self.store.grain
        stop = min(blob.size, (at // grain + 1) * grain)
        known = [c.start for c in self._chunks.get(blob, ()) if c.start > at]
        stop = min([stop, *known])
        return _Chunk(blob, at, stop, stop - at)

    def _request(self, chunk: _Chunk) -> None:
        self._chunks.setdefault(chunk.blob, []).append(chunk)
        self._held += chunk.stop - chunk.start
        chunk.data = self._pool.submit(self._fetch, chunk)

    def _make_room(self) -> None:
        """Drop chunks that nobody finished reading, the oldest first, for one that is needed."""
        while self._held >= self._memory:
            if self._spent:
                self._drop(self._spent.popleft())
                continue
            done = (
                c for chunks in self._chunks.values() for c in chunks if c.data and c.data.done()
            )
            oldest = next(done, None)
            if oldest is None:
                return
            self._drop(oldest)

    def _drop(self, chunk: _Chunk) -> None:
        chunks = self._chunks.get(chunk.blob, [])
        if chunk in chunks:
            chunks.remove(chunk)
            self._held -= chunk.stop - chunk.start
            if not chunks:
                del self._chunks[chunk.blob]

    def _release(self, chunk: _Chunk, count: int) -> None:
        with self._lock:
            chunk.left -= count
            if chunk.left > 0 or chunk in self._spent:
                return
            self._spent.append(chunk)
            if len(self._spent) > SPENT:
                self._drop(self._spent.popleft())
            self._fill()

    # -- on the threads of the pool ----------------------------------------------------------------

    def _fetch(self, chunk: _Chunk) -> memoryview:
        import numpy as np  # its memory is not cleared first

        data = np.empty(chunk.stop - chunk.start, np.uint8).data
        self.store.read(chunk.blob, chunk.start, data)
        return data
