"""The job that compares: a task is a run of elements of one target."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paramdelta.engine.memory import Need
from paramdelta.errors import MisfitError
from paramdelta.jobs.mix import Task, Tasks
from paramdelta.jobs.verify.stored import Stored
from paramdelta.jobs.verify.target import Difference, Target
from paramdelta.storage.blob import Blob
from paramdelta.storage.reader import Reader

DECODING = 12 << 20  # bytes: a block of a stored Δ, or pieces of the factors of an adapter


class DiffersError(MisfitError):
    """A number of the output is not what the sources give.

    ``blob``: the file of the output. ``sources``: the files that the number comes from.
    """

    def __init__(self, difference: Difference, sources: tuple[Blob, ...]) -> None:
        self.blob = difference.written.blob
        self.sources = sources
        super().__init__(
            "the output is not what its sources give",
            code="output-differs",
            where=f"{self.blob}, tensor {difference.written.name!r}, element {difference.element}",
            expected=difference.expected,
            got=difference.got,
            remedy="the file was changed or damaged after it was written: make it again",
        )


@dataclass(frozen=True)
class Receipt:
    """Numbers that a task compared, and the first one that differs."""

    count: int
    difference: Difference | None


@dataclass
class VerifyJob:
    """Compares runs of every target. See `engine.job.Job`.

    ``share``: of the runs of each target, at least one. ``seed``: chooses them. ``most``: elements
    that may be taken at a time. ``count``: numbers that were compared so far.
    """

    targets: tuple[Target, ...]
    share: float
    seed: int
    most: int = 0
    count: int = 0

    lead = None

    def tasks(self) -> Sequence[Task]:
        """See `Job.tasks`."""
        elements = [target.elements for target in self.targets]
        steps = [target.step for target in self.targets]
        whole = Tasks(elements, steps)
        if self.share == 1:
            return whole
        chance = random.Random(self.seed)
        chosen: list[int] = []
        first = 0
        for count in (-(-n // step) for n, step in zip(elements, steps, strict=True)):
            some = math.ceil(count * self.share)
            chosen += sorted(chance.sample(range(first, first + count), some))
            first += count
        return [whole[number] for number in chosen]

    def cost(self, task: Task) -> int:
        """Bytes of the output."""
        return self.targets[task.tensor].nbytes(task.start, task.stop)

    def need(self, most: int) -> Need:
        """Memory of a run that takes at most this many elements at a time."""
        return Need(max((target.need(most) for target in self.targets), default=0) + DECODING)

    def worker(self, reader: Reader, writers: Sequence[object]) -> Callable[[Task], Receipt]:
        """See `Job.worker`."""
        stored = Stored(reader)

        def run(task: Task) -> Receipt:
            target = self.targets[task.tensor]
            found = target.compare(task.start, task.stop, self.most, stored)
            return Receipt(target.count(task.start, task.stop), found)

        return run

    def collect(self, task: Task, receipt: Receipt) -> None:
        """Count what is right.

        Raises:
            DiffersError: something is not.
        """
        if receipt.difference is not None:
            raise DiffersError(receipt.difference, self.targets[task.tensor].sources)
        self.count += receipt.count
