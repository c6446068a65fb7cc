"""Contents of files by their digests: a job that reads what no digest has seen yet."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from paramdelta.engine.memory import Need
from paramdelta.storage.blob import Blob
from paramdelta.storage.digest import BLOCK, Digests
from paramdelta.storage.local import page_buffer
from paramdelta.storage.reader import Reader

RUN = 16  # blocks in a task


@dataclass(frozen=True)
class Stretch:
    """``length`` bytes of a file from ``offset`` on."""

    blob: Blob
    offset: int
    length: int


class ContentJob:
    """Reads all blocks of some files that have no digest yet. See `engine.job.Job`.

    The reader that runs it must have the same ``digests``.
    """

    lead = None

    def __init__(self, blobs: Iterable[Blob], digests: Digests) -> None:
        self.stretches = tuple(
            stretch
            for blob in dict.fromkeys(blobs)
            for stretch in _joined(blob, digests.of(blob.url, blob.size).missing)
        )

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(stretch.length for stretch in self.stretches)

    def tasks(self) -> Sequence[Stretch]:
        """See `Job.tasks`."""
        return self.stretches

    def cost(self, task: Stretch) -> int:
        """Bytes."""
        return task.length

    def need(self, size: int) -> Need:
        """A block; the size of buffers does not matter."""
        return Need(BLOCK)

    def worker(self, reader: Reader, writers: Sequence[object]) -> Callable[[Stretch], int]:
        """See `Job.worker`."""
        buffer = page_buffer(BLOCK)

        def read(task: Stretch) -> int:
            for offset in range(task.offset, task.offset + task.length, BLOCK):
                length = min(BLOCK, task.offset + task.length - offset)
                reader.read(task.blob, offset, buffer[:length])
            return task.length

        return read

    def collect(self, task: Stretch, receipt: int) -> None:
        """Nothing to do: the digests have seen the bytes."""


def _joined(blob: Blob, missing: Iterable[tuple[int, int]]) -> Iterator[Stretch]:
    """Blocks that follow each other in one task, up to `RUN`."""
    start = stop = 0
    for offset, length in missing:
        if offset != stop or stop - start >= RUN * BLOCK:
            if stop > start:
                yield Stretch(blob, start, stop - start)
            start = offset
        stop = offset + length
    if stop > start:
        yield Stretch(blob, start, stop - start)
