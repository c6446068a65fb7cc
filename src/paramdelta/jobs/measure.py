"""The measuring pass: for each trimmed Δ of a tensor, the least magnitude that is kept.

The k-th largest ``|post − base|``, exactly, in bounded memory, by radix select: magnitudes have the
order of the bits of their float64. A pass counts them by their first 20 bits. The next pass looks
only at the bucket that holds the k-th, and so on, until the numbers of the bucket fit into memory
or have no further bits. That takes two passes, except for a tensor that fits at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.engine.memory import Need
from paramdelta.formats.view import View, fetch_from
from paramdelta.planning.plan import OutputTensor
from paramdelta.schemes.pair import Pair
from paramdelta.storage.local import page_buffer
from paramdelta.storage.reader import Reader

DIGIT = 20  # bits of a magnitude by which a pass counts
FOUND = 1 << 17  # magnitudes that fit in memory: below this many, select directly


@dataclass(frozen=True)
class Task:
    """One Δ of one tensor."""

    tensor: int
    pair: Pair
    elements: int
    row: int


@dataclass(frozen=True)
class MeasureJob:
    """Finds the thresholds of ``wanted`` Δs. ``found``: by tensor and number of the Δ."""

    wanted: tuple[Task, ...]
    buffer: int
    found: dict[tuple[int, int], float] = field(default_factory=dict, compare=False)

    lead = None

    @classmethod
    def of(
        cls,
        members: Sequence[Sequence[OutputTensor]],
        is_wanted: Callable[[int], bool],
        buffer: int,
    ) -> "MeasureJob":
        """The job for the tensors of all outputs.

        The Δs are the same at any scale: the output with the most pairs has them all.
        ``is_wanted``: whether a tensor, by number, is still to be made.
        """
        tasks = []
        for number, tensors in enumerate(zip(*members, strict=True)):
            fullest = max(tensors, key=lambda tensor: len(tensor.pairs))
            pairs = [pair for pair in fullest.pairs if pair.needs_threshold]
            if pairs and is_wanted(number):
                row = fullest.new.width if len(fullest.shape) > 1 else 1
                tasks += [Task(number, pair, fullest.elements, row) for pair in pairs]
        return cls(tuple(tasks), buffer)

    def tasks(self) -> Sequence[Task]:
        """See `Job.tasks`."""
        return self.wanted

    def cost(self, task: Task) -> int:
        """Each threshold counts once."""
        return 1

    def worker(self, reader: Reader, writers: Sequence[Any]) -> "Worker":
        """See `Job.worker`."""
        return Worker(self.buffer, reader)

    def collect(self, task: Task, receipt: float) -> None:
        """Keep a threshold."""
        self.found[task.tensor, task.pair.number] = receipt

    def need(self, buffer: int) -> Need:
        """What a run holds with buffers of a size."""
        views = [view for task in self.wanted for view in (task.pair.post, task.pair.base)]
        scratch = max((view.scratch(buffer) for view in views), default=0)
        caches = {kind: size for view in views for kind, size in view.caches.items()}
        return Need(2 * buffer + scratch + 8 * ((1 << DIGIT) + FOUND), sum(caches.values()))

    def applied(self, tensors: Sequence[OutputTensor]) -> tuple[OutputTensor, ...]:
        """Tensors with the thresholds that were found."""
        return tuple(self._applied(number, tensor) for number, tensor in enumerate(tensors))

    def _applied(self, number: int, tensor: OutputTensor) -> OutputTensor:
        found = {p.number: self.found.get((number, p.number)) for p in tensor.pairs}
        if all(threshold is None for threshold in found.values()):
            return tensor
        pairs = (
            p.with_threshold(least) if (least := found[p.number]) is not None else p
            for p in tensor.pairs
        )
        return replace(tensor, pairs=tuple(pairs))


class Worker:
    """Finds one threshold at a time, with its own buffers."""

    def __init__(self, buffer: int, reader: Reader) -> None:
        self.size = buffer
        self.fetch = fetch_from(reader)
        self.buffers = [page_buffer(buffer) for _ in range(2)]
        self.counts = np.empty(1 << DIGIT, np.int64)
        self.found = np.empty(FOUND, np.int64)

    def __call__(self, task: Task) -> float:
        """The least magnitude of one Δ that is kept."""
        from paramdelta.arithmetic import masks

        counts, found, state = self.counts, self.found, np.empty(2, np.int64)
        (filter_,) = (f for f in task.pair.filters if f.needs_threshold)
        rank = filter_.kept(task.elements)  # of the wanted magnitude, from the largest
        prefix, width = 0, 63
        while True:
            step = max(0, width - DIGIT)
            counts.fill(0)
            state[:] = 0
            for start, stop in self._runs(task):
                post, base = (
                    self._read(view, start, stop, buffer)
                    for view, buffer in zip(
                        (task.pair.post, task.pair.base), self.buffers, strict=True
                    )
                )
                masks.look(post, base, prefix, width, step, counts, found, state)
            inside, used = state.tolist()
            if inside <= FOUND:
                return _float(int(np.partition(found[:inside], inside - rank)[inside - rank]))
            above = np.cumsum(counts[::-1])
            bucket = int(np.searchsorted(above, rank))  # from the largest, the first to reach it
            rank -= int(above[bucket - 1]) if bucket else 0
            digit = len(counts) - 1 - bucket
            prefix, width = prefix << (width - step) | digit, step
            if not used & ((1 << step) - 1):  # 16-bit operands hardly ever have more bits
                return _float(prefix << step)

    def _runs(self, task: Task) -> Iterator[tuple[int, int]]:
        """Runs of elements that fit in a buffer as float64; whole rows where one does."""
        most = max(1, self.size // 8)
        step = most // max(1, task.row) * task.row or most
        for start in range(0, task.elements, step):
            yield start, min(start + step, task.elements)

    def _read(self, view: View, start: int, stop: int, buffer: memoryview) -> npt.NDArray[Any]:
        into = buffer[: (stop - start) * view.kind.size]
        view.read(start, stop, into, self.fetch)
        return np.frombuffer(into, view.kind.numpy)


def _float(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
