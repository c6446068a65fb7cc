"""Contents of files by their digests: a job that reads what no digest has seen yet."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramdelta.engine.memory import Need
from paramdelta.storage.blob import Blob
from paramdelta.storage.digest import BLOCK, Digests, TreeDigest
from paramdelta.storage.local import page_buffer
from paramdelta.storage.reader import Reader

RUN = 4  # blocks in a task
READ = 1 << 20  # bytes: a read, which divides a block


@dataclass(frozen=True)
class Stretch:
    """Blocks ``first`` to ``last`` of a file; see `storage.digest`."""

    blob: Blob
    first: int
    last: int


class ContentJob:
    """Reads all blocks of some files that have no digest yet. See `engine.job.Job`.

    ``digests``: takes the digests of the blocks; None in a copy made by pickle.
    """

    lead = None

    def __init__(self, blobs: Iterable[Blob], digests: Digests) -> None:
        self.digests: Digests | None = digests
        self.stretches = tuple(
            stretch
            for blob in dict.fromkeys(blobs)
            for stretch in _stretches(blob, digests.of(blob.url, blob.size))
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "digests": None}

    def tasks(self) -> Sequence[Stretch]:
        """See `Job.tasks`."""
        return self.stretches

    def cost(self, task: Stretch) -> int:
        """Bytes."""
        return min(task.last * BLOCK, task.blob.size) - task.first * BLOCK

    def need(self, most: int) -> Need:
        """What a run holds; it does not depend on the size of buffers."""
        return Need(READ)

    def worker(
        self, reader: Reader, writers: Sequence[object]
    ) -> Callable[[Stretch], Mapping[int, bytes]]:
        """See `Job.worker`."""
        buffer = page_buffer(READ)

        def read(task: Stretch) -> Mapping[int, bytes]:
            digest = TreeDigest(task.blob.size)
            stop = min(task.last * BLOCK, task.blob.size)
            for offset in range(task.first * BLOCK, stop, READ):
                data = buffer[: stop - offset]
                reader.read(task.blob, offset, data)
                digest.update(offset, data)
            return digest.blocks

        return read

    def collect(self, task: Stretch, receipt: Mapping[int, bytes]) -> None:
        """Keep the digests of some blocks."""
        assert self.digests is not None
        self.digests.of(task.blob.url, task.blob.size).blocks.update(receipt)


def _stretches(blob: Blob, digest: TreeDigest) -> Iterator[Stretch]:
    """The blocks of a file that have no digest, up to `RUN` that follow each other in one."""
    first = last = 0
    for number in range(-(-blob.size // BLOCK)):
        if number in digest.blocks:
            continue
        if number != last or last - first >= RUN:
            if last > first:
                yield Stretch(blob, first, last)
            first = number
        last = number + 1
    if last > first:
        yield Stretch(blob, first, last)
