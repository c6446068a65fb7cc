"""The tensors of a plan as targets, and their comparison for each encoding."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.dtypes import FP8_SIDE
from paramdelta.encodings.encoding import Encoding
from paramdelta.encodings.fp8_blocks import Fp8Blocks
from paramdelta.encodings.plain import Plain
from paramdelta.formats.view import Tensor
from paramdelta.jobs.verify.formula import allowed, exact_total, operands, total
from paramdelta.jobs.verify.rounding import (
    E4M3_MOST,
    as_float,
    is_rounded,
    nearest_e4m3,
    rounded,
    widened,
)
from paramdelta.jobs.verify.stored import Stored
from paramdelta.jobs.verify.target import CopyTarget, Difference, blobs_of, size_of
from paramdelta.planning.plan import OutputTensor
from paramdelta.storage.blob import Blob

Floats = npt.NDArray[np.float64]

ROUNDED_BEFORE = Fraction(1, 2**50)  # of a sum: its rounding to float64, before it is quantized
# Arrays of 8-byte elements that exist at a time, beside operands and terms: the sum, what it is
# rounded to, places of rows and of blocks.
TEMPORARIES = 14
TASK = 1 << 17  # elements of a task, as far as these are whole rows
NEAR = 1e-9  # share by which float64 may be wrong about which number of a block is the largest


@dataclass(frozen=True)
class Run:
    """Elements ``start`` to ``stop`` of an output tensor, to be compared.

    ``written``: the streams of the tensor in the output. ``size``: elements to take at a time.
    """

    tensor: OutputTensor
    written: tuple[Tensor, ...]
    start: int
    stop: int
    size: int


@singledispatch
def compare(encoding: Encoding, run: Run, stored: Stored) -> Difference | None:
    """Compare a run of a tensor that is encoded; raises as `Reader.read`."""
    raise NotImplementedError(f"no comparison for encodings of the kind {type(encoding).__name__}")


@dataclass(frozen=True)
class OutputTarget:
    """A tensor of a plan. ``written``: its streams in the output. See `Target`."""

    tensor: OutputTensor
    written: tuple[Tensor, ...]

    @property
    def elements(self) -> int:
        """See `Target.elements`."""
        return self.tensor.elements

    @property
    def step(self) -> int:
        """Whole rows where a row fits in a task, whole blocks where there are blocks."""
        row = math.prod(self.tensor.shape[1:])
        rows = TASK // row * row if 0 < row <= TASK else TASK
        return max(1, self.tensor.encoding.task(self.tensor.shape, rows))

    @property
    def sources(self) -> tuple[Blob, ...]:
        """See `Target.sources`."""
        return blobs_of(self.tensor.views)

    def need(self, most: int) -> int:
        """See `Target.need`."""
        arrays = len(self.tensor.views) + len(self.tensor.pairs) + TEMPORARIES
        return 8 * arrays * self._size(most)

    def count(self, start: int, stop: int) -> int:
        """See `Target.count`."""
        return sum(map(len, self._ranges(start, stop)))

    def nbytes(self, start: int, stop: int) -> int:
        """See `Target.nbytes`."""
        ranges = zip(self.written, self._ranges(start, stop), strict=True)
        return sum(written.kind.nbytes(len(elements)) for written, elements in ranges)

    def compare(self, start: int, stop: int, most: int, stored: Stored) -> Difference | None:
        """Compare copies bit by bit, the rest by `compare`."""
        copied = self.tensor.stored
        if copied is None:
            run = Run(self.tensor, self.written, start, stop, self._size(most))
            return compare(self.tensor.encoding, run, stored)
        streams = zip(copied, self.written, self._ranges(start, stop), strict=True)
        for view, written, elements in streams:
            target = CopyTarget(view, written)
            found = target.compare(elements.start, elements.stop, most, stored)
            if found is not None:
                return found
        return None

    def _ranges(self, start: int, stop: int) -> tuple[range, ...]:
        return self.tensor.encoding.runs(self.tensor.shape, start, stop)

    def _size(self, most: int) -> int:
        return size_of((*self.tensor.views, *(self.tensor.stored or ())), most)


# -- plain dtypes ----------------------------------------------------------------------------------


@compare.register
def _(encoding: Plain, run: Run, stored: Stored) -> Difference | None:
    tensor, (written,) = run.tensor, run.written
    for start in range(run.start, run.stop, run.size):
        stop = min(start + run.size, run.stop)
        values = operands(tensor, start, stop, stored)
        expected = rounded(total(tensor, values, start), tensor.dtype)
        got = widened(stored.run(written, start, stop), tensor.dtype)
        for at in _unequal(expected, got):
            found = exact_total(tensor, start + at, _element(values, at), stored)
            wanted, number = float(expected[at]), float(got[at])
            right = found is not None and is_rounded(*found, number, tensor.dtype, allowed(tensor))
            # What an election makes of infinities is not defined, except that it is not finite.
            right |= not (tensor.linear or math.isfinite(wanted) or math.isfinite(number))
            if not right:
                return Difference(written, start + at, repr(wanted), repr(number))
    return None


def _unequal(expected: Floats, got: Floats) -> list[int]:
    """Places of numbers that differ; NaN is equal to NaN."""
    if np.array_equal(expected, got):
        return []
    same = (expected == got) | (np.isnan(expected) & np.isnan(got))
    found: list[int] = np.flatnonzero(~same).tolist()
    return found


def _element(values: Sequence[Floats], at: int) -> list[float]:
    return [float(value[at]) for value in values]


# -- FP8 in blocks ---------------------------------------------------------------------------------


@compare.register
def _(encoding: Fp8Blocks, run: Run, stored: Stored) -> Difference | None:
    """Compare rows of whole blocks, then their scales.

    The codes are compared with what they should be beside the scales that are written.
    """
    tensor, (codes, scales) = run.tensor, run.written
    columns = tensor.shape[1]
    _, grid = encoding.runs(tensor.shape, run.start, run.stop)
    across = -(-columns // FP8_SIDE)
    written = widened(stored.run(scales, grid.start, grid.stop), "F32").reshape(-1, across)
    top = run.start // columns
    largest = np.zeros_like(written)
    for start in range(run.start, run.stop, run.size):
        stop = min(start + run.size, run.stop)
        values = operands(tensor, start, stop, stored)
        sums = total(tensor, values, start)
        row, column = np.divmod(np.arange(start, stop), columns)
        block = (row - top) // FP8_SIDE * across + column // FP8_SIDE
        finite = np.where(np.isfinite(sums), np.abs(sums), 0)
        _raise_largest(largest.reshape(-1), block, finite)
        divisors = written.reshape(-1)[block]
        with np.errstate(all="ignore"):
            expected = rounded(np.clip(sums / divisors, -E4M3_MOST, E4M3_MOST), codes.dtype)
        expected[np.isinf(sums)] = np.nan
        numbers = widened(stored.run(codes, start, stop), codes.dtype)
        for at in _unequal(expected, numbers):
            found = exact_total(tensor, start + at, _element(values, at), stored)
            number, divisor = float(numbers[at]), float(divisors[at])
            if found is None or not _is_code(*found, number, divisor):
                return Difference(codes, start + at, repr(float(expected[at])), repr(number))
    for number in np.flatnonzero(_scales(largest) != written).tolist():
        down, aside = divmod(number, across)
        most, got = float(largest[down, aside]), float(written[down, aside])
        if not _is_scale(run, top + down * FP8_SIDE, aside * FP8_SIDE, most, got, stored):
            return Difference(scales, grid.start + number, repr(float(_scales(most))), repr(got))
    return None


def _raise_largest(largest: Floats, block: npt.NDArray[np.int64], sizes: Floats) -> None:
    """Raise each block's largest number to what a run has of it."""
    begins = np.flatnonzero(np.diff(block, prepend=-1))
    np.maximum.at(largest, block[begins], np.maximum.reduceat(sizes, begins))


def _scales(largest: Any) -> Any:
    """The scales of blocks by their largest magnitudes, as docs/recipes.md defines them."""
    limits = np.finfo(np.float32)
    with np.errstate(over="ignore"):
        scales = np.maximum(largest / E4M3_MOST, float(limits.tiny)).astype(np.float32)
    return np.where(largest == 0, 1.0, np.minimum(scales, limits.max).astype(np.float64))


def _is_scale(run: Run, first: int, left: int, largest: float, got: float, stored: Stored) -> bool:
    """Whether ``got`` is, by exact arithmetic, the scale of the block that begins in a row and a
    column.

    The largest number in float64 is not always the exact largest, and can round differently.
    """
    rows, columns = run.tensor.shape
    right = min(left + FP8_SIDE, columns)
    for row in range(first, min(first + FP8_SIDE, rows)):
        start = row * columns + left
        values = operands(run.tensor, start, start + right - left, stored)
        sizes = np.abs(total(run.tensor, values, start))
        near = np.isfinite(sizes) & (sizes >= largest * (1 - NEAR))
        for at in np.flatnonzero(near).tolist():
            found = exact_total(run.tensor, start + at, _element(values, at), stored)
            if found is None:
                continue
            exact, slack = found
            error = slack + abs(exact) * ROUNDED_BEFORE
            low, high = (float(_scales(as_float(abs(exact) + way * error))) for way in (-1, 1))
            if low <= got <= high:
                return True
    return False


def _is_code(exact: Fraction, slack: Fraction, got: float, scale: float) -> bool:
    """Whether ``got`` is the exact value over the scale, rounded to F8_E4M3."""
    if not (np.isfinite(scale) and scale > 0 and np.isfinite(got)):
        return False
    error = slack + abs(exact) * ROUNDED_BEFORE
    low, high = (nearest_e4m3((exact + way * error) / Fraction(scale)) for way in (-1, 1))
    return low <= got <= high
