"""What the elements of a view are, by what the view means and not by how the engine reads it.

Three functions, each with one registration for every kind of `View` (and `grain`, which need not
have one):

- `value`: a run of elements,
- `runs`: many runs of equal length, from any places,
- `exact`: one element as a fraction, and how far the engine's float64 may be from it.

Arrays have the dtype of the view, as `dtypes` gives it: bits that are copied stay as they are.
A new kind of view needs the three; without them `verify` raises NotImplementedError.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import singledispatch
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from paramdelta.errors import CheckpointError
from paramdelta.formats import delta
from paramdelta.formats.blockscaled import BlockScaled
from paramdelta.formats.dora import Dora
from paramdelta.formats.gguf.views import MinusOne, Quantized
from paramdelta.formats.lowrank import LowRank
from paramdelta.formats.permuted import Permuted
from paramdelta.formats.scaled import Scaled
from paramdelta.formats.view import ABSENT, Part, Rows, Tensor, Transposed, View, Wide, Zeros
from paramdelta.jobs.verify import ggml
from paramdelta.jobs.verify.rounding import widened
from paramdelta.jobs.verify.stored import Array, Places, Stored

Floats = npt.NDArray[np.float64]
Near = tuple[Fraction, Fraction]

# Elements that are taken at a time. Arrays of few stay in the processor's cache, and come from
# memory that the process has already; the pages of larger ones are new each time.
GRAIN = 1 << 14
MANY = 1 << 17  # whole blocks of a stored Δ, longer runs of a transposed matrix
STRIP = 1 << 14  # elements of a product that stay in the cache while its terms are added
PIECE = 1 << 16  # elements of a factor that are held at a time


@singledispatch
def value(view: View, start: int, stop: int, stored: Stored) -> Array:
    """Elements ``start`` to ``stop`` of a view, row-major; raises as `Reader.read`."""
    raise _unknown(view)


@singledispatch
def runs(view: View, starts: Places, length: int, stored: Stored) -> Array:
    """Runs of ``length`` elements, one from each element of ``starts``: (runs, length)."""
    raise _unknown(view)


@singledispatch
def exact(view: View, element: int, number: float, stored: Stored) -> Near:
    """An element exactly, and how far the engine's float64 may be from it.

    ``number``: its float64 by `value`, which is finite, and exact unless it is an element of a
    product of matrices.
    """
    raise _unknown(view)


@singledispatch
def grain(view: View) -> int:
    """Elements that should be taken at a time: few, unless that makes work twice."""
    return max(map(grain, view.views), default=GRAIN)


@grain.register(Transposed)
@grain.register(Permuted)
@grain.register(LowRank)
@grain.register(Dora)
@grain.register(delta.Difference)
@grain.register(Quantized)
def _(view: View) -> int:
    return MANY


def wide(view: View, start: int, stop: int, stored: Stored) -> Floats:
    """A run of elements in float64."""
    return widened(value(view, start, stop, stored), view.dtype)


def wide_runs(view: View, starts: Places, length: int, stored: Stored) -> Floats:
    """Runs of elements in float64."""
    return widened(runs(view, starts, length, stored), view.dtype)


def _unknown(view: View) -> NotImplementedError:
    return NotImplementedError(f"no reference for views of the kind {type(view).__name__}")


def _elements(starts: Places, length: int) -> Places:
    return starts[:, None] + np.arange(length)


def _rectangles(start: int, stop: int, width: int) -> Iterator[tuple[range, range]]:
    """A run of elements of a matrix as rows and columns: the end of a row, rows, the start of one.

    ``width``: columns of the matrix.
    """
    while start < stop:
        row, column = divmod(start, width)
        whole = (stop - start) // width if column == 0 else 0
        count = whole * width or min(stop - start, width - column)
        yield range(row, row + max(1, whole)), range(column, column + count // max(1, whole))
        start += count


# -- stored tensors and zeros ----------------------------------------------------------------------


@value.register
def _(view: Tensor, start: int, stop: int, stored: Stored) -> Array:
    return stored.run(view, start, stop)


@runs.register
def _(view: Tensor, starts: Places, length: int, stored: Stored) -> Array:
    return stored.runs(view, starts, length)


@exact.register(Tensor)
@exact.register(Zeros)
@exact.register(BlockScaled)
@exact.register(Dora)
@exact.register(delta.Difference)
@exact.register(Quantized)
@exact.register(MinusOne)
def _(view: View, element: int, number: float, stored: Stored) -> Near:
    return Fraction(number), Fraction(0)


@value.register
def _(view: Zeros, start: int, stop: int, stored: Stored) -> Array:
    return np.zeros(stop - start, view.kind.numpy)


@runs.register
def _(view: Zeros, starts: Places, length: int, stored: Stored) -> Array:
    return np.zeros((starts.size, length), view.kind.numpy)


# -- views of one view -----------------------------------------------------------------------------


@value.register
def _(view: Part, start: int, stop: int, stored: Stored) -> Array:
    return value(view.view, view.first + start, view.first + stop, stored)


@runs.register
def _(view: Part, starts: Places, length: int, stored: Stored) -> Array:
    return runs(view.view, starts + view.first, length, stored)


@exact.register
def _(view: Part, element: int, number: float, stored: Stored) -> Near:
    return exact(view.view, view.first + element, number, stored)


@value.register
def _(view: Wide, start: int, stop: int, stored: Stored) -> Array:
    return wide(view.view, start, stop, stored)


@runs.register
def _(view: Wide, starts: Places, length: int, stored: Stored) -> Array:
    return wide_runs(view.view, starts, length, stored)


@exact.register
def _(view: Wide, element: int, number: float, stored: Stored) -> Near:
    return exact(view.view, element, number, stored)


@value.register
def _(view: Transposed, start: int, stop: int, stored: Stored) -> Array:
    width = view.view.shape[1]
    found = []
    for rows, columns in _rectangles(start, stop, view.shape[1]):
        starts = np.arange(columns.start, columns.stop) * width + rows.start
        found.append(runs(view.view, starts, len(rows), stored).T.reshape(-1))
    return np.concatenate(found) if found else np.empty(0, view.kind.numpy)


@runs.register
def _(view: Transposed, starts: Places, length: int, stored: Stored) -> Array:
    row, column = np.divmod(_elements(starts, length), view.shape[1])
    place = column * view.view.shape[1] + row
    return runs(view.view, place.reshape(-1), 1, stored).reshape(place.shape)


@exact.register
def _(view: Transposed, element: int, number: float, stored: Stored) -> Near:
    row, column = divmod(element, view.shape[1])
    return exact(view.view, column * view.view.shape[1] + row, number, stored)


@value.register
def _(view: Permuted, start: int, stop: int, stored: Stored) -> Array:
    places = _permuted_places(view, np.arange(start, stop))
    return runs(view.view, places, 1, stored).reshape(-1)


@runs.register
def _(view: Permuted, starts: Places, length: int, stored: Stored) -> Array:
    places = _permuted_places(view, _elements(starts, length))
    return runs(view.view, places.reshape(-1), 1, stored).reshape(places.shape)


@exact.register
def _(view: Permuted, element: int, number: float, stored: Stored) -> Near:
    place = _permuted_places(view, np.array([element]))
    return exact(view.view, int(place[0]), number, stored)


def _permuted_places(view: Permuted, elements: Places) -> Places:
    """Where elements are in the view that is permuted."""
    indices = np.unravel_index(elements, view.shape)
    inner = dict(zip(view.axes, indices, strict=True))
    places = np.ravel_multi_index([inner[axis] for axis in range(len(inner))], view.view.shape)
    return np.asarray(places, np.int64)


# -- rows of several views -------------------------------------------------------------------------


@value.register
def _(view: Rows, start: int, stop: int, stored: Stored) -> Array:
    found = []
    for rows, columns in _rectangles(start, stop, view.width):
        source = _source_rows(view, rows)
        part = np.zeros((len(rows), len(columns)), view.kind.numpy)
        for inner, first in _numbered(view):
            here = np.flatnonzero((source >= first) & (source < first + _row_count(inner)))
            if not here.size:
                continue
            starts = (source[here] - first) * view.width + columns.start
            follows = len(columns) == view.width and (np.diff(starts) == view.width).all()
            if follows:  # rows that follow each other in the view as well
                begin = int(starts[0])
                read = value(inner, begin, begin + here.size * view.width, stored)
                part[here] = read.reshape(here.size, -1)
            else:
                part[here] = runs(inner, starts, len(columns), stored)
        found.append(part.reshape(-1))
    return np.concatenate(found) if found else np.empty(0, view.kind.numpy)


@runs.register
def _(view: Rows, starts: Places, length: int, stored: Stored) -> Array:
    row, column = np.divmod(starts, view.width)
    if length > 1 and (column + length > view.width).any():  # runs that leave their row
        return runs(view, _elements(starts, length).reshape(-1), 1, stored).reshape(-1, length)
    if view.rows is not None:
        row = np.frombuffer(view.rows, np.int32)[row].astype(np.int64)
    result = np.zeros((starts.size, length), view.kind.numpy)
    for inner, first in _numbered(view):
        here = np.flatnonzero((row >= first) & (row < first + _row_count(inner)))
        if here.size:
            places = (row[here] - first) * view.width + column[here]
            result[here] = runs(inner, places, length, stored)
    return result


@exact.register
def _(view: Rows, element: int, number: float, stored: Stored) -> Near:
    row, column = divmod(element, view.width)
    source = int(_source_rows(view, range(row, row + 1))[0])
    for inner, first in _numbered(view):
        if source != ABSENT and first <= source < first + _row_count(inner):
            return exact(inner, (source - first) * view.width + column, number, stored)
    return Fraction(0), Fraction(0)


def _source_rows(view: Rows, rows: range) -> Places:
    """For each row its number among all rows of the sources; `ABSENT` for a row of zeros."""
    if view.rows is None:
        return np.arange(rows.start, rows.stop)
    return np.frombuffer(view.rows, np.int32)[rows.start : rows.stop].astype(np.int64)


def _numbered(view: Rows) -> Iterator[tuple[View, int]]:
    """The views whose rows are picked, each with the number of its first row."""
    first = 0
    for inner in view.views:
        yield inner, first
        first += _row_count(inner)


def _row_count(view: View) -> int:
    return view.elements // max(1, math.prod(view.shape[1:]))


# -- FP8 with scales -------------------------------------------------------------------------------


@value.register
def _(view: BlockScaled, start: int, stop: int, stored: Stored) -> Array:
    result = wide(view.weight, start, stop, stored)
    height, width = view.block
    across = -(-view.shape[1] // width)
    done = 0
    for rows, columns in _rectangles(start, stop, view.shape[1]):
        count = len(rows) * len(columns)
        top, bottom = rows.start // height, (rows.stop - 1) // height + 1
        left, right = columns.start // width, (columns.stop - 1) // width + 1
        grid = wide_runs(view.scale, np.arange(top, bottom) * across + left, right - left, stored)
        part = result[done : done + count].reshape(len(rows), -1)
        down = np.arange(rows.start, rows.stop) // height - top
        aside = np.arange(columns.start, columns.stop) // width - left
        with np.errstate(invalid="ignore", over="ignore"):
            part *= grid[down[:, None], aside]
        done += count
    return result


@runs.register
def _(view: BlockScaled, starts: Places, length: int, stored: Stored) -> Array:
    codes = wide_runs(view.weight, starts, length, stored)
    row, column = np.divmod(_elements(starts, length), view.shape[1])
    across = -(-view.shape[1] // view.block[1])
    block = row // view.block[0] * across + column // view.block[1]
    scales = wide_runs(view.scale, block.reshape(-1), 1, stored)
    with np.errstate(invalid="ignore", over="ignore"):
        return codes * scales.reshape(codes.shape)


# -- GGUF ------------------------------------------------------------------------------------------


@value.register
def _(view: Quantized, start: int, stop: int, stored: Stored) -> Array:
    each, size = view.type.elements, view.type.size
    first, last = start // each, -(-stop // each)
    blocks = stored.run(view.stored, first * size, last * size).reshape(-1, size)
    return ggml.numbers(view.type.name, blocks).reshape(-1)[start - first * each :][: stop - start]


@runs.register
def _(view: Quantized, starts: Places, length: int, stored: Stored) -> Array:
    each, size = view.type.elements, view.type.size
    block, place = np.divmod(_elements(starts, length), each)
    wanted, number = np.unique(block, return_inverse=True)
    found = np.empty((wanted.size, each), np.float32)
    for begin, end in _pieces(wanted.size, PIECE // each):
        blocks = stored.runs(view.stored, wanted[begin:end] * size, size)
        found[begin:end] = ggml.numbers(view.type.name, blocks)
    return found[number.reshape(block.shape), place]


@value.register
def _(view: MinusOne, start: int, stop: int, stored: Stored) -> Array:
    with np.errstate(invalid="ignore"):
        result: Array = value(view.view, start, stop, stored) - np.float32(1)
    return result


@runs.register
def _(view: MinusOne, starts: Places, length: int, stored: Stored) -> Array:
    with np.errstate(invalid="ignore"):
        result: Array = runs(view.view, starts, length, stored) - np.float32(1)
    return result


# -- products of matrices --------------------------------------------------------------------------


@value.register
def _(view: LowRank, start: int, stop: int, stored: Stored) -> Array:
    depth, width = view.down.shape
    result = np.zeros(stop - start)
    done = 0
    for rows, columns in _rectangles(start, stop, width):
        count = len(rows) * len(columns)
        part = result[done : done + count].reshape(len(rows), -1)
        for some, down_to in _pieces(len(rows), max(1, PIECE // depth)):
            for deep, deeper in _pieces(depth, PIECE):
                starts = np.arange(rows.start + some, rows.start + down_to) * depth + deep
                up = wide_runs(view.up, starts, deeper - deep, stored)
                for left, right in _pieces(len(columns), max(1, STRIP // (down_to - some))):
                    starts = np.arange(deep, deeper) * width + columns.start + left
                    down = wide_runs(view.down, starts, right - left, stored)
                    _add_products(up, down, part[some:down_to, left:right])
        done += count
    return _times(result, view.factor)


@runs.register
def _(view: LowRank, starts: Places, length: int, stored: Stored) -> Array:
    depth, width = view.down.shape
    row, column = np.divmod(starts, width)
    if length > 1 and (column + length > width).any():  # runs that leave their row
        return runs(view, _elements(starts, length).reshape(-1), 1, stored).reshape(-1, length)
    rows, of_row = np.unique(row, return_inverse=True)
    columns, of_column = np.unique(column, return_inverse=True)
    total = np.zeros((starts.size, length))
    for deep, deeper in _pieces(depth, max(1, PIECE // max(1, rows.size))):
        up = wide_runs(view.up, rows * depth + deep, deeper - deep, stored)
        for k in range(deep, deeper):
            down = wide_runs(view.down, k * width + columns, length, stored)
            with np.errstate(all="ignore"):
                total += up[of_row, k - deep, None] * down[of_column]
    return _times(total, view.factor)


@exact.register
def _(view: LowRank, element: int, number: float, stored: Stored) -> Near:
    depth, width = view.down.shape
    row, column = divmod(element, width)
    total = size = Fraction(0)
    for deep, deeper in _pieces(depth, PIECE):
        up = wide(view.up, row * depth + deep, row * depth + deeper, stored)
        down = wide_runs(view.down, np.arange(deep, deeper) * width + column, 1, stored)[:, 0]
        if not (np.isfinite(up).all() and np.isfinite(down).all()):
            return Fraction(number), Fraction(0)
        for u, d in zip(up.tolist(), down.tolist(), strict=True):
            product = Fraction(u) * Fraction(d)
            total += product
            size += abs(product)
    factor = Fraction(view.factor)
    return factor * total, rounding_of_product(depth) * abs(factor) * size


def rounding_of_product(depth: int) -> Fraction:
    """How far ``factor · Σ uₖ dₖ`` of ``depth`` products, summed in float64, may be from the exact
    value, as a share of ``|factor| · Σ |uₖ dₖ|``.

    Every product goes through at most its own rounding, ``depth`` − 1 of sums and that of the
    factor, each of at most 2⁻⁵³: γ of ``depth`` + 1 (Higham, Accuracy and Stability of Numerical
    Algorithms, 2nd ed., section 3.1), whatever the order of the sum. It matters where the exact
    result lies this near to the middle between two numbers of the output's dtype.
    """
    steps = Fraction(depth + 1, 2**53)
    return steps / (1 - steps)


def _add_products(up: Floats, down: Floats, total: Floats) -> None:
    """Add ``up @ down`` to ``total``, each element in the order of the products, as `LowRank` says.

    So the result is the engine's to the last bit, which decides where a threshold cuts.
    """
    product = np.empty_like(total)
    with np.errstate(all="ignore"):
        for k in range(up.shape[1]):
            np.multiply(up[:, k, None], down[k], out=product)
            total += product


def _pieces(whole: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, whole, step):
        yield start, min(start + step, whole)


def _times(total: Floats, factor: float) -> Floats:
    with np.errstate(all="ignore"):
        total *= factor
    return total


# -- numbers times a factor, and lines of a trained length
# ------------------------------------------


@value.register
def _(view: Scaled, start: int, stop: int, stored: Stored) -> Array:
    return _times(wide(view.view, start, stop, stored), view.factor)


@runs.register
def _(view: Scaled, starts: Places, length: int, stored: Stored) -> Array:
    return _times(wide_runs(view.view, starts, length, stored), view.factor)


@exact.register
def _(view: Scaled, element: int, number: float, stored: Stored) -> Near:
    inner = float(wide(view.view, element, element + 1, stored)[0])
    unscaled, slack = exact(view.view, element, inner, stored)
    factor = Fraction(view.factor)
    return factor * unscaled, abs(factor) * (slack + abs(unscaled) * Fraction(1, 2**53))


@value.register
def _(view: Dora, start: int, stop: int, stored: Stored) -> Array:
    return _dora(
        view,
        np.arange(start, stop),
        wide(view.base, start, stop, stored),
        wide(view.delta, start, stop, stored),
        stored,
    )


@runs.register
def _(view: Dora, starts: Places, length: int, stored: Stored) -> Array:
    base = wide_runs(view.base, starts, length, stored)
    delta_ = wide_runs(view.delta, starts, length, stored)
    return _dora(view, _elements(starts, length), base, delta_, stored)


def _dora(view: Dora, places: Places, base: Floats, delta_: Floats, stored: Stored) -> Floats:
    """``m / ‖W + Δ‖ · (W + Δ)`` at some places."""
    width = max(1, math.prod(view.shape[1:]))
    lines = places % width if view.columns else places // width
    some, number = np.unique(lines, return_inverse=True)
    squares = _squares_of_columns(view, stored) if view.columns else None
    with np.errstate(all="ignore"):
        if squares is None:
            lengths = np.array([_square_of_row(view, row, stored) for row in some.tolist()])
        else:
            lengths = squares[some]
        magnitudes = wide_runs(view.magnitude, some, 1, stored)[:, 0]
        factors: Floats = magnitudes / np.sqrt(lengths)
        result: Floats = (base + delta_) * factors[number].reshape(places.shape)
    return result


def _square_of_row(view: Dora, row: int, stored: Stored) -> float:
    """The sum of the squares of one row, in the order of its elements."""
    width = math.prod(view.shape[1:])
    total = 0.0
    for start, stop in _pieces(width, PIECE):
        begin, end = row * width + start, row * width + stop
        values = wide(view.base, begin, end, stored) + wide(view.delta, begin, end, stored)
        total = float(np.add.accumulate(np.append(total, values * values))[-1])
    return total


_COLUMNS: WeakKeyDictionary[Stored, dict[Dora, Floats]] = WeakKeyDictionary()


def _squares_of_columns(view: Dora, stored: Stored) -> Floats:
    """The sums of the squares of all columns, in the order of the rows; computed once a reader."""
    known = _COLUMNS.setdefault(stored, {})
    if view not in known:
        height, width = view.shape
        squares = np.zeros(width)
        rows = max(1, PIECE // width)
        for row, end in _pieces(height, rows):
            begin, stop = row * width, end * width
            values = wide(view.base, begin, stop, stored) + wide(view.delta, begin, stop, stored)
            for line in np.square(values).reshape(-1, width):
                squares += line
        known.clear()
        known[view] = squares
    return known[view]


# -- stored Δ --------------------------------------------------------------------------------------


@value.register
def _(view: delta.Difference, start: int, stop: int, stored: Stored) -> Array:
    if start == stop:
        return np.empty(0)
    first, last = start // delta.BLOCK, -(-stop // delta.BLOCK)
    found = _blocks(view, first, last, stored)
    return np.concatenate(found)[start - first * delta.BLOCK : stop - first * delta.BLOCK]


@runs.register
def _(view: delta.Difference, starts: Places, length: int, stored: Stored) -> Array:
    number, place = np.divmod(_elements(starts, length), delta.BLOCK)
    result = np.empty(number.shape)
    for block in np.unique(number).tolist():
        here = number == block
        (values,) = _blocks(view, block, block + 1, stored)
        result[here] = values[place[here]]
    return result


def _blocks(view: delta.Difference, first: int, last: int, stored: Stored) -> list[Floats]:
    """Blocks of one half of a stored Δ, by the description of its format."""
    table = 8 * -(-view.elements // delta.BLOCK)
    before = min(first, 1)
    raw = stored.run(view.stream, 8 * (first - before), 8 * last)
    ends = raw.view("<u8").tolist()
    ends = ends if before else [table, *ends]
    return [
        _block(view, number, (table, begin, end), stored)
        for number, begin, end in zip(range(first, last), ends, ends[1:], strict=False)
    ]


def _block(
    view: delta.Difference, number: int, place: tuple[int, int, int], stored: Stored
) -> Floats:
    """One block. ``place``: where the first one may begin, where this one begins and ends."""
    least, begin, end = place
    try:
        if not (least <= begin <= end <= view.stream.size and end - begin <= delta.MOST):
            raise ValueError(f"bytes {begin} to {end} of {view.stream.size}")
        block = memoryview(stored.run(view.stream, begin, end).tobytes())
        return _decoded(block, view.half, min(delta.BLOCK, view.elements - number * delta.BLOCK))
    except ValueError as error:
        raise CheckpointError(
            f"a stored Δ is damaged: block {number}",
            code="damaged-delta",
            where=f"{view.stream.blob}, tensor {view.name!r}",
            expected="a block of a stored Δ",
            got=str(error),
            remedy="get it again, or extract it again",
        ) from None


def _decoded(block: memoryview, half: int, size: int) -> Floats:
    """The ``size`` numbers of one half of a block; raises ValueError."""
    columns = np.zeros((size, delta.PLANES), np.uint8)
    for plane, frame in delta.frames_of(block, half):
        columns[:, plane] = np.frombuffer(delta.decompress(frame, size), np.uint8)
    word = columns.view(">u8").reshape(-1).astype(np.uint64)
    exponent = (word >> np.uint64(56)) + (word & np.uint64(7)) * np.uint64(256)
    exponent = np.where(exponent > 1151, exponent - 1151, np.where(exponent, exponent + 896, 0))
    bits = (word >> np.uint64(3)) & np.uint64(2**52 - 1)
    bits |= (word >> np.uint64(55) & np.uint64(1)) << np.uint64(63)
    bits |= exponent.astype(np.uint64) << np.uint64(52)
    result: Floats = bits.view(np.float64)
    return result
