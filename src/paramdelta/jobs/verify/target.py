"""Targets: the tensors of an output that are compared, each with what it should be."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from paramdelta.formats.view import Tensor, View
from paramdelta.jobs.verify import reference
from paramdelta.jobs.verify.rounding import widened
from paramdelta.jobs.verify.stored import Array, Stored
from paramdelta.storage.blob import Blob


@dataclass(frozen=True)
class Difference:
    """The first element of a written tensor that is not what it should be."""

    written: Tensor
    element: int
    expected: str
    got: str


class Target(Protocol):
    """One tensor to compare, run by run. Picklable."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""

    @property
    def step(self) -> int:
        """Elements of a task, except for the last."""

    @property
    def sources(self) -> tuple[Blob, ...]:
        """The files that say what it should be."""

    def need(self, most: int) -> int:
        """Bytes that a worker holds, if at most ``most`` elements are taken at a time."""

    def count(self, start: int, stop: int) -> int:
        """How many numbers of the output a run of elements covers."""

    def nbytes(self, start: int, stop: int) -> int:
        """How many bytes of the output a run of elements covers."""

    def compare(self, start: int, stop: int, most: int, stored: Stored) -> Difference | None:
        """Compare a run, at most ``most`` elements at a time; raises as `Reader.read`."""


@dataclass(frozen=True)
class CopyTarget:
    """A tensor that holds the bits of a view."""

    view: View
    written: Tensor

    @property
    def elements(self) -> int:
        """See `Target.elements`."""
        return self.view.elements

    @property
    def step(self) -> int:
        """See `Target.step`."""
        return reference.MANY

    @property
    def sources(self) -> tuple[Blob, ...]:
        """See `Target.sources`."""
        return blobs_of([self.view])

    def need(self, most: int) -> int:
        """See `Target.need`."""
        return 8 * 4 * size_of([self.view], most)

    def count(self, start: int, stop: int) -> int:
        """See `Target.count`."""
        return stop - start

    def nbytes(self, start: int, stop: int) -> int:
        """See `Target.nbytes`."""
        return self.written.kind.nbytes(stop - start)

    def compare(self, start: int, stop: int, most: int, stored: Stored) -> Difference | None:
        """See `Target.compare`."""
        size = size_of([self.view], most)
        for first in range(start, stop, size):
            last = min(first + size, stop)
            expected = reference.value(self.view, first, last, stored)
            got = stored.run(self.written, first, last)
            if not np.array_equal(_bits(expected), _bits(got)):
                return self._difference(first, expected, got)
        return None

    def _difference(self, first: int, expected: Array, got: Array) -> Difference:
        wrong = (_bits(expected) != _bits(got)).reshape(-1, expected.itemsize).any(1)
        at = int(np.flatnonzero(wrong)[0])
        shown = (self._shown(array[at : at + 1]) for array in (expected, got))
        return Difference(self.written, first + at, *shown)

    def _shown(self, one: Array) -> str:
        if not self.view.kind.mixable:
            return str(one[0])
        bits = int.from_bytes(one.tobytes(), "little")
        return f"{float(widened(one, self.view.dtype)[0])!r} (0x{bits:0{2 * one.itemsize}x})"


def size_of(views: Iterable[View], most: int) -> int:
    """Elements of some views to take at a time."""
    return max(1, min(most, max(map(reference.grain, views))))


def blobs_of(views: Iterable[View]) -> tuple[Blob, ...]:
    """The files that views are stored in, each once."""
    return tuple(dict.fromkeys(part.blob for view in views for part in view.parts))


def _bits(array: Array) -> Array:
    return array.view(np.uint8)
