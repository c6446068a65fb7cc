"""Thresholds of trimmed Δs, found again by numpy: what the measuring pass found is not trusted.

The k-th largest magnitude, by its bits as an integer: magnitudes have the order of the bits of
their float64. A pass over the Δ counts them by their first `DIGIT` bits, and the next pass looks
only at those that begin like the one that is wanted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.engine.memory import Need
from paramdelta.jobs.verify import reference
from paramdelta.jobs.verify.job import DECODING
from paramdelta.jobs.verify.stored import Stored
from paramdelta.jobs.verify.target import size_of
from paramdelta.planning.plan import OutputTensor
from paramdelta.schemes.pair import Pair
from paramdelta.storage.reader import Reader

DIGIT = 16  # bits of a magnitude by which a pass counts
BITS = 63  # of a magnitude: its sign is left out
FEW = 1 << 19  # magnitudes held at a time; this many are selected from directly
TEMPORARIES = 6  # float64 arrays of a run that exist at a time


@dataclass(frozen=True)
class Task:
    """One Δ of one tensor, by the tensor's number."""

    tensor: int
    pair: Pair
    elements: int


@dataclass(frozen=True)
class ThresholdJob:
    """Finds the thresholds of the Δs of some tensors. See `engine.job.Job`.

    ``most``: elements that may be taken at a time. ``found``: by number of the tensor and of the Δ.
    """

    wanted: tuple[Task, ...]
    most: int = 0
    found: dict[tuple[int, int], float] = field(default_factory=dict, compare=False)

    lead = None

    @classmethod
    def of(cls, tensors: Sequence[OutputTensor]) -> "ThresholdJob":
        """The job for all tensors of a plan."""
        tasks = (
            Task(number, pair, tensor.elements)
            for number, tensor in enumerate(tensors)
            for pair in tensor.pairs
            if pair.needs_threshold and tensor.elements
        )
        return cls(tuple(tasks))

    def tasks(self) -> Sequence[Task]:
        """See `Job.tasks`."""
        return self.wanted

    def cost(self, task: Task) -> int:
        """Each threshold counts once."""
        return 1

    def need(self, most: int) -> Need:
        """Memory of a run that takes at most this many elements at a time."""
        views = [view for task in self.wanted for view in (task.pair.post, task.pair.base)]
        size = size_of(views, most) if views else 0
        return Need(8 * TEMPORARIES * size + 8 * 3 * FEW + DECODING)

    def worker(self, reader: Reader, writers: Sequence[Any]) -> "Worker":
        """See `Job.worker`."""
        return Worker(Stored(reader), self.most)

    def collect(self, task: Task, receipt: float) -> None:
        """Keep a threshold."""
        self.found[task.tensor, task.pair.number] = receipt

    def applied(self, tensors: Sequence[OutputTensor]) -> tuple[OutputTensor, ...]:
        """The tensors with the thresholds that were found."""
        return tuple(self._applied(number, tensor) for number, tensor in enumerate(tensors))

    def _applied(self, number: int, tensor: OutputTensor) -> OutputTensor:
        pairs = (
            pair.with_threshold(self.found[number, pair.number])
            if (number, pair.number) in self.found
            else pair
            for pair in tensor.pairs
        )
        return replace(tensor, pairs=tuple(pairs))


class Worker:
    """Finds one threshold at a time."""

    def __init__(self, stored: Stored, most: int) -> None:
        self.stored = stored
        self.most = most

    def __call__(self, task: Task) -> float:
        """The least magnitude of a Δ that counts."""
        (filter_,) = (f for f in task.pair.filters if f.needs_threshold)
        rank = task.elements - filter_.kept(task.elements)  # how many are smaller, or as small
        prefix, known, inside = 0, 0, task.elements
        while inside > FEW and known < BITS:
            digit = min(DIGIT, BITS - known)
            counts = np.zeros(1 << digit, np.int64)
            for bits in self._magnitudes(task, prefix, known):
                found = bits >> (BITS - known - digit) & ((1 << digit) - 1)
                counts += np.bincount(found, minlength=len(counts))
            below = np.cumsum(counts)
            bucket = int(np.searchsorted(below, rank, side="right"))
            rank -= int(below[bucket - 1]) if bucket else 0
            prefix, known, inside = prefix << digit | bucket, known + digit, int(counts[bucket])
        if known == BITS:
            return _float(prefix)
        left = np.concatenate(list(self._magnitudes(task, prefix, known)))
        return _float(int(np.partition(left, rank)[rank]))

    def _magnitudes(self, task: Task, prefix: int, known: int) -> Iterator[npt.NDArray[np.int64]]:
        """The bits of all magnitudes whose first ``known`` bits are ``prefix``."""
        size = size_of((task.pair.post, task.pair.base), self.most)
        for start in range(0, task.elements, size):
            stop = min(start + size, task.elements)
            post = reference.wide(task.pair.post, start, stop, self.stored)
            with np.errstate(all="ignore"):
                post -= reference.wide(task.pair.base, start, stop, self.stored)
            bits = np.abs(post, out=post).view(np.int64)
            yield bits[bits >> (BITS - known) == prefix] if known else bits


def _float(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
