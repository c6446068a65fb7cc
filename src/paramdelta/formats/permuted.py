"""A stored tensor with its axes in another order, such as PyTorch's channels_last."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from paramdelta.formats.view import Derived, Fetch


@dataclass(frozen=True)
class Permuted(Derived):
    """The view with its axes in another order, as ``numpy.transpose(view, axes)`` has them.

    ``axes``: for each axis of this tensor, which one of the view it is.

    >>> Permuted("a", "F32", (2, 8, 3, 3), view=channels_last, axes=(0, 3, 1, 2))  # doctest: +SKIP
    """

    axes: tuple[int, ...]

    @property
    def identity(self) -> list[Any]:
        """The view and the order of the axes."""
        return ["permuted", self.view.identity, list(self.axes)]

    def scratch(self, size: int) -> int:
        """The block before it is reordered, and at worst the place of each of its elements."""
        return size + 16 * (size // max(1, self.kind.size)) + self.view.scratch(size)

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Read the run box by box, each in the view's own order, and reorder its axes."""
        import numpy as np

        kind, position = self.kind.numpy, 0
        order = [self.axes.index(axis) for axis in range(len(self.axes))]  # by axis of the view
        for box in boxes(start, stop, self.shape):
            count = math.prod(map(len, box))
            target = into[position : position + count * kind.itemsize]
            block = np.empty([len(box[axis]) for axis in order], kind)
            self._fetch([box[axis] for axis in order], block.data.cast("B"), fetch)
            shaped = np.frombuffer(target, kind).reshape([len(part) for part in box])
            shaped[...] = block.transpose(self.axes)
            position += len(target)

    def _fetch(self, box: Sequence[range], into: memoryview, fetch: Fetch) -> None:
        """Fetch a box of the view: one run, or equal runs of the last axes that are whole."""
        import numpy as np

        shape = self.view.shape
        axis, length = len(box) - 1, len(box[-1])
        while axis and len(box[axis]) == shape[axis]:
            axis -= 1
            length *= len(box[axis])
        strides = [math.prod(shape[number + 1 :]) for number in range(len(shape))]
        starts = np.full(1, box[axis].start * strides[axis], np.int64)
        for number in range(axis):
            starts = np.add.outer(
                starts, np.arange(box[number].start, box[number].stop) * strides[number]
            )
        starts = starts.reshape(-1)
        if len(starts) == 1:
            self.view.read(int(starts[0]), int(starts[0]) + length, into, fetch)
        else:
            self.view.gather(starts, into, fetch)


def boxes(start: int, stop: int, shape: Sequence[int]) -> Iterator[list[range]]:
    """A run of elements, in row-major order, as boxes that follow each other: a range by axis.

    A run of a tensor of n axes is at most 2n − 1 boxes.
    """
    if start >= stop:
        return
    if not shape:
        yield []
        return
    if len(shape) == 1:
        yield [range(start, stop)]
        return
    width = math.prod(shape[1:])
    row, column = divmod(start, width)
    if column or stop - start < width:
        end = min(stop - row * width, width)
        for rest in boxes(column, end, shape[1:]):
            yield [range(row, row + 1), *rest]
        row += 1
    last = stop // width
    if row < last:
        yield [range(row, last), *map(range, shape[1:])]
    if row <= last:
        for rest in boxes(0, stop - last * width, shape[1:]):
            yield [range(last, last + 1), *rest]
