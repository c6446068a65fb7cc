"""The arithmetic of an analysis: sums, counts and histograms of several vectors in one pass.

Compiled by numba; no I/O, no names. The vectors (rows) are differences of operands, such as Δ =
post − base. A block of each row is made in float64 in the processor's cache, then every measure
reads it from there.

Sums of a block are plain float64, in an order that depends on the processor alone. From block to
block they go through double-double accumulators. So the result does not depend on how many elements
a call gets, and the error of a sum does not grow with their number.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from paramdelta.arithmetic.compiled import (
    compiled,
    f32_bits,
    f64_bits,
    f64_from_bits,
    inlined,
    summed,
)
from paramdelta.arithmetic.kernels import (
    F32,
    F64,
    I64,
    U32,
    U64,
    _odd64,
    _two_sum,
    _widen,
    halves,
    scaled,
)

Array = npt.NDArray[Any]

BLOCK = 1024  # elements of each row that are in the cache together
FINE = 4  # bits of the mantissa that a bucket of a histogram tells apart
NONE, ROW = -1, -2
BUCKETS = 1 << (8 + FINE)
_SHIFT = 23 - FINE


class Rounding(NamedTuple):
    """How the output rounds: ``dropped`` bits of a float64's mantissa; below ``least`` (its
    smallest normal number), to multiples of the ulp of ``magic``. ``exact``: the new base's numbers
    are rounded already.
    """

    exact: bool
    dropped: int
    least: float
    magic: float


class Vectors(NamedTuple):
    """Which vectors (rows) are made of the operands, and what is measured of them.

    ``height``: how many there are. ``terms``: int64 (T, 4): row, what is added, what is
    subtracted, and whether the row starts here. These are operands, or `NONE`, or ``ROW − n`` for
    row n, which is made before. ``pairs``: int64 (M, 2), rows whose scalar product is wanted; each
    row with itself is among them. ``signed``: of how many, the first ones, the signs are compared.
    ``deltas``: int64 (D,), rows that are Δs. ``news``: int64 (D,), the row of the new base for each
    Δ. ``scales``: float64 (D,), the factor of each Δ in the output.
    """

    height: int
    terms: Array
    pairs: Array
    signed: int
    deltas: Array
    news: Array
    scales: Array


class Sums(NamedTuple):
    """What `measure` adds to.

    ``high`` and ``low``: float64 (segments, M), sums of products. ``fourth``: float64 (2, D), sums
    of the fourth powers of the Δs, and their rests. ``zero``, ``lost``: int64 (D,), elements that
    are zero, and others that the output's rounding takes away. ``top``: int64 (D,), bits of the
    largest magnitude. ``same``, ``both``: int64 (G,), elements of equal sign, and those where
    neither is zero. ``broken``: int64 (1,), elements at which a row is infinite or NaN: they count
    as zeros in every row. ``histogram``: int32 (D, `BUCKETS`), of the leading bits of float32 |Δ|.
    """

    high: Array
    low: Array
    fourth: Array
    zero: Array
    lost: Array
    top: Array
    same: Array
    both: Array
    broken: Array
    histogram: Array


def empty(segments: int, rows: Vectors) -> Sums:
    """Sums of nothing."""
    deltas, signs = len(rows.deltas), rows.signed
    return Sums(
        high=np.zeros((segments, len(rows.pairs))),
        low=np.zeros((segments, len(rows.pairs))),
        fourth=np.zeros((2, deltas)),
        zero=np.zeros(deltas, np.int64),
        lost=np.zeros(deltas, np.int64),
        top=np.zeros(deltas, np.int64),
        same=np.zeros(signs, np.int64),
        both=np.zeros(signs, np.int64),
        broken=np.zeros(1, np.int64),
        histogram=np.zeros((deltas, BUCKETS), np.int32),
    )


@inlined
def _make(row: Any, plus: Any, minus: Any) -> None:
    for i in range(row.size):
        row[i] = _widen(plus[i], F64(0)) - _widen(minus[i], F64(0))


@inlined
def _make_alone(row: Any, plus: Any) -> None:
    for i in range(row.size):
        row[i] = _widen(plus[i], F64(0))


@inlined
def _increase(row: Any, plus: Any) -> None:
    for i in range(row.size):
        row[i] += _widen(plus[i], F64(0))


@inlined
def _decrease(row: Any, minus: Any) -> None:
    for i in range(row.size):
        row[i] -= _widen(minus[i], F64(0))


@summed
def _product(one: Any, two: Any) -> Any:
    total = 0.0
    for i in range(one.size):
        total += one[i] * two[i]
    return total


@summed
def _fourth(row: Any) -> Any:
    total = 0.0
    for i in range(row.size):
        square = row[i] * row[i]
        total += square * square
    return total


@inlined
def _rounded(
    value: Any, dropped: Any, odd: Any, half: Any, mask: Any, least: Any, magic: Any
) -> Any:
    bits = f64_bits(value)
    kept = U64(U64(U64(bits + half) + U64(U64(bits >> dropped) & odd)) & mask)
    return f64_from_bits(kept) if abs(value) >= least else (value + magic) - magic


@inlined
def _lost(row: Any, new: Any, scale: Any, rounding: Any) -> Any:
    bits, least, magic = U64(rounding.dropped), rounding.least, rounding.magic
    odd = U64(1) if rounding.dropped > 0 else U64(0)
    half = U64(U64(U64(U64(1) << bits) >> U64(1)) - odd)
    mask = U64(~U64(U64(U64(1) << bits) - U64(1)))
    lost = I64(0)
    if rounding.exact and abs(scale) == 1.0:  # the usual case, as fast as can be
        for i in range(row.size):
            moved = _rounded(new[i] + scale * row[i], bits, odd, half, mask, least, magic)
            lost += I64(1) if (moved == new[i]) & (row[i] != 0.0) else I64(0)
        return lost
    scale_high, scale_low = halves(scale)
    for i in range(row.size):
        there = _rounded(new[i], bits, odd, half, mask, least, magic)
        product, rest = scaled(row[i], 0.0, scale, scale_high, scale_low)
        total, error = _two_sum(new[i], product)
        exact = _odd64(total, error + rest)  # or halfway cases would round to even
        moved = _rounded(exact, bits, odd, half, mask, least, magic)
        lost += I64(1) if (moved == there) & (row[i] != 0.0) else I64(0)
    return lost


@inlined
def _look(row: Any, places: Any) -> Any:
    zero, top = I64(0), I64(0)
    for i in range(row.size):
        size = abs(row[i])
        zero += I64(1) if size == 0.0 else I64(0)
        bits = I64(f64_bits(size))
        top = bits if bits > top else top
        places[i] = f32_bits(F32(size)) >> U32(_SHIFT)
    return zero, top


@inlined
def _count(places: Any, histogram: Any) -> None:
    for i in range(places.size):
        histogram[places[i]] += 1


@summed
def _signed_product(one: Any, two: Any) -> Any:
    """The product, the elements of equal sign, and those where neither is zero."""
    total, same, both = 0.0, I64(0), I64(0)
    for i in range(one.size):
        product = one[i] * two[i]
        total += product
        same += I64(1) if product > 0.0 else I64(0)
        both += I64(1) if product != 0.0 else I64(0)
    return total, same, both


@inlined
def _cleaned(rows: Any, count: Any, size: Any) -> Any:
    """Set all rows to zero where one is not finite; how many elements that were."""
    broken = 0
    for i in range(size):
        bad = False
        for r in range(count):
            bad |= (rows[r, i] - rows[r, i]) != 0.0
        if bad:
            broken += 1
            for r in range(count):
                rows[r, i] = 0.0
    return broken


@inlined
def _fill(operands: Any, begin: Any, size: Any, terms: Any, scratch: Any) -> None:
    """Make a block of every row."""
    end = begin + size
    for t in range(len(terms)):
        r, plus, minus, starts = terms[t]
        row = scratch[r, :size]
        if starts == 0:
            _increase(row, operands[plus, begin:end])
            if minus >= 0:
                _decrease(row, operands[minus, begin:end])
        elif minus == NONE:
            _make_alone(row, operands[plus, begin:end])
        elif minus >= 0:
            _make(row, operands[plus, begin:end], operands[minus, begin:end])
        elif plus >= 0:
            _make(row, operands[plus, begin:end], scratch[ROW - minus, :size])
        else:
            _make(row, scratch[ROW - plus, :size], scratch[ROW - minus, :size])


@inlined
def _multiply(scratch: Any, size: Any, pairs: Any, products: Any, counts: Any) -> None:
    """The products of a block, and the counts of signs for the first of them."""
    for m in range(len(pairs)):
        one, two = scratch[pairs[m, 0], :size], scratch[pairs[m, 1], :size]
        if m < len(counts):
            products[m], counts[m, 0], counts[m, 1] = _signed_product(one, two)
        else:
            products[m] = _product(one, two)


@compiled
def measure(
    operands: Array, size: int, block: int, inner: int, segments: int, start: int, first: int,
    rows: Vectors, rounding: Rounding, sums: Sums, scratch: Array, places: Array,
) -> None:  # fmt: skip
    """Add the measures of ``size`` elements from number ``start`` of a tensor to ``sums``.

    ``operands``: (K, N), as `dtypes` views them. ``block``: elements that are summed together, at
    most `BLOCK`; divides ``start`` and ``inner``. Element i belongs to segment ``(i // inner) %
    segments``, whose sums are row ``segment − first``. ``scratch``: float64 (rows, `BLOCK`);
    ``places``: uint32 (`BLOCK`,).
    """
    products = np.empty(len(rows.pairs))
    counts = np.empty((rows.signed, 2), np.int64)
    for begin in range(0, size, block):
        here = min(block, size - begin)
        segment = ((start + begin) // inner) % segments - first
        _fill(operands, begin, here, rows.terms, scratch)
        finite = 0.0
        _multiply(scratch, here, rows.pairs, products, counts)
        for m in range(len(rows.pairs)):
            finite += products[m] * 0.0
        if finite != 0.0:
            sums.broken[0] += _cleaned(scratch, rows.height, here)
            _multiply(scratch, here, rows.pairs, products, counts)
        for m in range(len(rows.pairs)):
            total, rest = _two_sum(sums.high[segment, m], products[m])
            sums.high[segment, m] = total
            sums.low[segment, m] += rest
        for d in range(len(rows.deltas)):
            row = scratch[rows.deltas[d], :here]
            total, rest = _two_sum(sums.fourth[0, d], _fourth(row))
            sums.fourth[0, d] = total
            sums.fourth[1, d] += rest
            zero, top = _look(row, places[:here])
            sums.zero[d] += zero
            sums.top[d] = max(sums.top[d], top)
            _count(places[:here], sums.histogram[d])
            new = scratch[rows.news[d], :here]
            sums.lost[d] += _lost(row, new, rows.scales[d], rounding)
        for g in range(len(counts)):
            sums.same[g] += counts[g, 0]
            sums.both[g] += counts[g, 1]


@compiled
def widen(operand: Array, out: Array) -> None:
    """The same numbers as float64."""
    _make_alone(out, operand)
