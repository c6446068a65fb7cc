"""Read-ahead: each chunk is requested once, ahead of its readers, in bounded memory."""

import random
import threading

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


def test_a_read_past_the_end_is_the_stores_business(place):
    """The store decides what a range past the end means."""
    ahead = ReadAhead(place, 1 << 20)
    with pytest.raises(ValueError, match="different"):
        read(ahead, 10_400, 200)
    ahead.close()
