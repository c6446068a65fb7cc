"""Read-ahead: each chunk is requested once, ahead of its readers, in bounded memory."""

import random
import threading

import numpy as np
import pytest

from paramdelta.errors import StorageError
from paramdelta.storage import readahead
from paramdelta.storage.blob import Blob
from paramdelta.storage.readahead import ReadAhead


class Slow:
    """A store of one object; requests can be held back or fail."""

    grain = 1000

    def __init__(self, data):
        self.data = data
        self.requests = []
        self.failures = 0
        self.lock = threading.Lock()

    def read(self, blob, offset, into):
        """A range."""
        with self.lock:
            self.requests.append((offset, len(into)))
            if self.failures:
                self.failures -= 1
                raise StorageError("the connection broke", code="broken")
        into[:] = self.data[offset : offset + len(into)]

    def close(self):
        """Nothing to do."""


@pytest.fixture
def place():
    """An object of 10 and a half chunks."""
    return Slow(random.Random(0).randbytes(10_500))


BLOB = Blob("x://a", 10_500, "1")


def read(ahead, offset, length):
    """Some bytes."""
    into = bytearray(length)
    ahead.read(BLOB, offset, memoryview(into))
    return bytes(into)


def test_each_chunk_is_requested_once(place):
    """Small reads in order, by four threads: the right bytes, and one request per chunk."""
    ahead = ReadAhead(place, 1 << 20)
    runs = [(offset, min(130, 10_500 - offset)) for offset in range(0, 10_500, 130)]
    found, lock = {}, threading.Lock()

    def work(mine):
        for offset, length in mine:
            data = read(ahead, offset, length)
            with lock:
                found[offset] = data

    threads = [threading.Thread(target=work, args=(runs[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"".join(data for _, data in sorted(found.items())) == place.data
    assert sorted(place.requests) == [(n * 1000, 1000) for n in range(10)] + [(10_000, 500)]
    ahead.close()


def test_the_next_chunks_are_requested_before_they_are_needed(place):
    """One read of the first chunk asks for the next ones too, and for no more."""
    ahead = ReadAhead(place, 1 << 20)
    read(ahead, 0, 10)
    ahead._pool.shutdown(wait=True)
    assert sorted(place.requests) == [(n * 1000, 1000) for n in range(1 + readahead.AHEAD)]


def test_a_failed_request_is_repeated_by_the_next_reader(place):
    """An error reaches its reader and is not remembered."""
    ahead = ReadAhead(place, 1 << 20)
    place.failures = 1 + readahead.AHEAD
    with pytest.raises(StorageError, match="broke"):
        read(ahead, 0, 10)
    ahead._pool.shutdown(wait=True)
    again = ReadAhead(place, 1 << 20)
    assert read(again, 0, 10) == place.data[:10]
    again.close()


def test_memory_is_bounded(place):
    """Chunks that nobody finished reading make room for others."""
    ahead = ReadAhead(place, 0)
    for number in range(10, -1, -1):
        assert read(ahead, number * 1000, 1) == place.data[number * 1000 : number * 1000 + 1]
        assert len(ahead._chunks) <= readahead.REQUESTS
    ahead.close()


# -- when it is known what will be read ------------------------------------------------------------


def announced(place, runs, memory=1 << 20):
    """A store that follows some runs of `BLOB`."""
    ahead = ReadAhead(place, memory)
    ahead.follow((BLOB, start, stop) for start, stop in runs)
    return ahead


def test_what_is_announced_is_requested_once_in_any_order(place, monkeypatch):
    """Runs out of order, with holes: the right bytes, none twice, none that nobody reads."""
    monkeypatch.setattr(readahead, "JOIN", 0)
    runs = [(at, at + 100) for at in [*range(5000, 9000, 100), *range(0, 3000, 100)]]
    ahead = announced(place, runs)
    for start, stop in runs:
        assert read(ahead, start, stop - start) == place.data[start:stop]
    requested = sorted(place.requests)
    assert sum(length for _, length in requested) == sum(stop - start for start, stop in runs)
    assert len(requested) == 7
    ahead.close()


def test_requests_go_on_while_nobody_reads(place):
    """As many chunks as there is memory for, in the order in which they will be needed."""
    place.grain = 100
    ahead = announced(place, [(0, 5000)], memory=1000)
    ahead._pool.shutdown(wait=True)
    assert sorted(place.requests) == [(at, 100) for at in range(0, 1000, 100)]


def test_memory_is_bounded_when_announced_runs_are_not_read(place):
    """A reader that leaves out what it announced still gets its bytes, in bounded memory."""
    place.grain = 100
    ahead = announced(place, [(at, at + 10) for at in range(0, 10_000, 10)], memory=1000)
    for start in range(0, 10_000, 250):
        assert read(ahead, start, 10) == place.data[start : start + 10]
        assert ahead._held <= 1000 + 200
    ahead.close()


def test_blobs_are_read_side_by_side(place):
    """Three blobs in turns: each gets chunks of the grain."""
    blobs = [Blob(f"x://{name}", 10_500, "1") for name in "abc"]
    runs = [(blob, at, at + 100) for at in range(0, 10_500, 100) for blob in blobs]
    ahead = ReadAhead(place, 1 << 20)
    ahead.follow(runs)
    for blob, start, stop in runs:
        into = bytearray(stop - start)
        ahead.read(blob, start, memoryview(into))
        assert bytes(into) == place.data[start:stop]
    assert len(place.requests) == 3 * 11
    ahead.close()


def test_a_run_that_was_not_announced_is_read(place):
    """By a request of its own, which does not disturb the others."""
    ahead = announced(place, [(0, 2000)])
    assert read(ahead, 7300, 200) == place.data[7300:7500]
    assert read(ahead, 0, 2000) == place.data[:2000]
    assert sorted(place.requests) == [(0, 1000), (1000, 1000), (7300, 700)]
    ahead.close()


def test_scattered_parts_come_from_chunks(place):
    """Parts in few chunks: those chunks are requested, and once; else the store gathers."""
    place.read_many = lambda *_: pytest.fail("the store was asked")
    ahead = announced(place, [])
    into = bytearray(40)
    for shift in (0, 10):
        offsets = np.array([1900, 100, 995, 1200]) + shift
        ahead.read_many(BLOB, offsets, memoryview(into), range(3000))
        assert bytes(into) == b"".join(place.data[at : at + 10] for at in offsets)
    assert sum(length for _, length in place.requests) <= 3000
    ahead.close()


def test_a_read_past_the_end_is_the_stores_business(place):
    """The store decides what a range past the end means."""
    ahead = ReadAhead(place, 1 << 20)
    with pytest.raises(ValueError, match="different"):
        read(ahead, 10_400, 200)
    ahead.close()
