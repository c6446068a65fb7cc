"""What a verification found, what it may use, and how its jobs are run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from paramdelta.engine import threads
from paramdelta.engine.job import Engine, Job, Progress
from paramdelta.engine.memory import Budget, Need, budget
from paramdelta.jobs.verify.contents import ContentJob
from paramdelta.storage.blob import Blob
from paramdelta.storage.digest import Digests
from paramdelta.storage.reader import Reader


@dataclass(frozen=True)
class Verification:
    """What was compared, and is right.

    ``tensors``: how many, in the files of the output. ``elements`` of ``total`` numbers. ``how``:
    against what. ``files``: whose content digests are those that were noted. ``seed``: chose the
    sample; the same seed compares the same numbers. ``notes``: what may be meant, and is not wrong.
    """

    tensors: int
    elements: int
    total: int
    how: str = ""
    files: int = 0
    seed: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How to verify. See `api.verify`. ``engine``: runs the jobs."""

    share: float
    memory: int
    workers: int
    seed: int
    download: bool
    progress: Callable[[Progress], None]
    post: str | None = None
    base: str | None = None
    engine: Engine = threads.run

    def budget(self, needs: Sequence[Callable[[int], Need]]) -> Budget:
        """Workers and buffers for jobs that run one after the other.

        ``needs``: of each job, by the number of elements that it takes at a time.

        Raises:
            UsageError: too little memory.
        """

        def need(buffer: int) -> Need:
            found = [each(buffer // 8) for each in needs]
            return Need(max(n.each for n in found), max(n.shared for n in found))

        return budget(need, self.memory, self.workers, " to verify this")


class Runner:
    """Runs the jobs of one verification, one after the other, with one progress for all.

    ``ahead``: the cost of the jobs that come after the first. ``quiet``: the progress is not shown.
    """

    def __init__(
        self, options: Options, workers: int = 1, ahead: int = 0, quiet: bool = False
    ) -> None:
        self.options = options
        self.workers = workers
        self.ahead = ahead
        self.progress = (lambda _: None) if quiet else options.progress
        self._done = 0
        self._moved = 0

    def run(self, job: Job[Any, Any], reader: Reader) -> None:
        """Run one job; raises what its tasks raise."""
        total = 0

        def watch(now: Progress) -> None:
            nonlocal total
            total = now.total
            done = self._done + now.done
            self.progress(
                Progress(done, self._done + total + self.ahead, 0, self._moved + now.moved)
            )

        self._run(job, reader, watch)
        self._done += total
        self._moved += reader.count

    def measure(self, job: Job[Any, Any], reader: Reader, what: str, total: int) -> None:
        """Run a job that comes before what is counted. ``what``: its tasks, for people."""

        def watch(now: Progress) -> None:
            stage = f"{now.done} of {now.total} {what}"
            self.progress(Progress(0, total, 0, self._moved + now.moved, stage))

        self._run(job, reader, watch)
        self._moved += reader.count

    def digested(self, blobs: Iterable[Blob], digests: Digests) -> dict[Blob, str]:
        """The content digest of each file; what was not read yet is read now."""
        blobs = tuple(dict.fromkeys(blobs))
        self.ahead = 0
        with Reader(once=True, ahead=True) as reader:
            self.run(ContentJob(blobs, digests), reader)
        return {blob: digests.of(blob.url, blob.size).hexdigest() for blob in blobs}

    def _run(
        self, job: Job[Any, Any], reader: Reader, progress: Callable[[Progress], None]
    ) -> None:
        self.options.engine(job, reader, workers=self.workers, progress=progress)
