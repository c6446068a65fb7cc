"""The job that compares: a task is a run of elements of an output tensor."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from paramdelta.engine.memory import Need
from paramdelta.errors import MisfitError
from paramdelta.formats.view import Tensor
from paramdelta.jobs.mix import Task, Tasks
from paramdelta.jobs.verify.comparison import Difference, Run, compared
from paramdelta.jobs.verify.stored import Stored
from paramdelta.jobs.verify.thresholds import DECODING
from paramdelta.planning.plan import OutputTensor
from paramdelta.storage.blob import Blob
from paramdelta.storage.reader import Reader

# Arrays of 8-byte elements that exist at a time, beside operands and terms: the sum, what it is
# rounded to, places of rows and of blocks.
TEMPORARIES = 14


class DiffersError(MisfitError):
    """A number of the output is not what the sources give.

    ``blob``: the file of the output. ``sources``: the files that the number comes from.
    """

    def __init__(self, difference: Difference, sources: tuple[Blob, ...]) -> None:
        self.blob = difference.written.blob
        self.sources = sources
        super().__init__(
            "the output is not what its sources give",
            where=f"{self.blob}, tensor {difference.written.name!r}, element {difference.element}",
            expected=difference.expected,
            got=difference.got,
            remedy="the file was changed or damaged after it was written: mix again",
        )


@dataclass(frozen=True)
class Receipt:
    """Elements that a task compared, and the first one that differs."""

    elements: int
    difference: Difference | None


@dataclass
class VerifyJob:
    """Compares runs of every tensor. See `engine.job.Job`.

    ``tensors``: those of the plan. ``written``: by tensor, its streams in the output. ``share``: of
    the runs of each tensor, at least one. ``seed``: chooses them. ``size``: elements to take at a
    time. ``elements``: how many were compared so far, scales of quantized tensors included.
    """

    tensors: tuple[OutputTensor, ...]
    written: tuple[tuple[Tensor, ...], ...]
    share: float
    seed: int
    size: int
    elements: int = 0

    lead = None

    @classmethod
    def of(
        cls,
        tensors: Sequence[OutputTensor],
        output: Mapping[str, Tensor],
        share: float,
        seed: int,
        size: int,
    ) -> "VerifyJob":
        """The job for the tensors of a plan. ``output``: all tensors that are written, by name."""
        written = (tuple(output[s.name] for s in tensor.streams) for tensor in tensors)
        return cls(tuple(tensors), tuple(written), share, seed, size)

    def tasks(self) -> Sequence[Task]:
        """See `Job.tasks`."""
        steps = [self._step(tensor) for tensor in self.tensors]
        whole = Tasks(self.tensors, steps)
        if self.share == 1:
            return whole
        chance = random.Random(self.seed)
        chosen: list[int] = []
        first = 0
        for tensor, step in zip(self.tensors, steps, strict=True):
            count = -(-tensor.elements // step)
            some = math.ceil(count * self.share)
            chosen += sorted(chance.sample(range(first, first + count), some))
            first += count
        return [whole[number] for number in chosen]

    def cost(self, task: Task) -> int:
        """Bytes of the output."""
        return sum(
            written.kind.nbytes(len(elements))
            for written, elements in zip(self.written[task.tensor], self._ranges(task), strict=True)
        )

    def need(self, size: int) -> Need:
        """What a run holds that takes ``size`` elements at a time."""
        most = max((len(t.views) + len(t.pairs) for t in self.tensors), default=1)
        return Need(8 * size * (most + TEMPORARIES) + DECODING)

    def worker(self, reader: Reader, writers: Sequence[object]) -> Callable[[Task], Receipt]:
        """See `Job.worker`."""
        stored = Stored(reader)

        def run(task: Task) -> Receipt:
            tensor, written = self.tensors[task.tensor], self.written[task.tensor]
            found = compared(Run(tensor, written, task.start, task.stop, self.size), stored)
            return Receipt(sum(map(len, self._ranges(task))), found)

        return run

    def collect(self, task: Task, receipt: Receipt) -> None:
        """Count what is right.

        Raises:
            DiffersError: something is not.
        """
        if receipt.difference is not None:
            parts = (part for view in self.tensors[task.tensor].views for part in view.parts)
            sources = tuple(dict.fromkeys(part.blob for part in parts))
            raise DiffersError(receipt.difference, sources)
        self.elements += receipt.elements

    def _ranges(self, task: Task) -> tuple[range, ...]:
        tensor = self.tensors[task.tensor]
        return tensor.encoding.runs(tensor.shape, task.start, task.stop)

    def _step(self, tensor: OutputTensor) -> int:
        """Elements of a task: whole rows where a row fits, whole blocks where there are blocks."""
        row = math.prod(tensor.shape[1:])
        rows = self.size // row * row if 0 < row <= self.size else self.size
        return max(1, tensor.encoding.task(tensor.shape, rows))
