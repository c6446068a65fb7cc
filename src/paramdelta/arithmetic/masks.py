"""The arithmetic of sparse Δ: pure functions on arrays, compiled by numba. No I/O, no names.

As in `engine.kernels`; see `engine.sparsify` for what they are for.
"""

from typing import Any

from paramdelta.arithmetic.compiled import compiled, f64_bits, inlined
from paramdelta.arithmetic.kernels import (
    F64,
    I64,
    U64,
    Array,
    _all_finite,
    _narrow,
    _two_sum,
    _widen,
    halves,
    increased,
    scaled,
)


@inlined
def _hashed(key: Any, number: Any) -> Any:
    z = U64(key + U64(U64(number + U64(1)) * U64(0x9E3779B97F4A7C15)))
    z = U64(U64(z ^ U64(z >> U64(30))) * U64(0xBF58476D1CE4E5B9))
    z = U64(U64(z ^ U64(z >> U64(27))) * U64(0x94D049BB133111EB))
    return U64(z ^ U64(z >> U64(31)))


@compiled
def hashed(key: Any, start: Any, out: Array) -> None:
    """The outputs of SplitMix64 seeded with ``key``, from number ``start`` (counted from 0).

    Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014; the
    constants are those of Java's SplittableRandom. All of uint64.
    """
    for i in range(out.size):
        out[i] = _hashed(key, U64(start + U64(i)))


@compiled
def gather(
    post: Array,
    base: Array,
    coefficient: float,
    weight: float,
    key: Any,
    cutoff: Any,
    start: Any,
    threshold: float,
    high: Array,
    low: Array,
    weights: Array,
) -> None:
    """Add ``coefficient (post − base)`` of the elements that count to the row of its sign in the
    float64 accumulators ``high + low``, and ``weight`` to the same row of ``weights``.

    An element counts if its hash is at least ``cutoff`` and ``|post − base|``, in float64, is at
    least ``threshold``. ``start``: number of the first element in the tensor. ``key``, ``cutoff``
    and ``start`` are uint64. Accumulators: (2, at least N).
    """
    above, below = halves(coefficient)
    for i in range(post.size):
        if cutoff > U64(0) and _hashed(key, U64(start + U64(i))) < cutoff:
            continue
        p, b = _widen(post[i], F64(0)), _widen(base[i], F64(0))
        difference, error = _two_sum(p, -b)
        if p == b or abs(difference) < threshold:
            continue
        product, rest = scaled(difference, error, coefficient, above, below)
        row = 0 if product > 0.0 else 1
        high[row, i], low[row, i] = increased(high[row, i], low[row, i], product, rest)
        weights[row, i] += weight


@compiled
def settle(
    new: Array,
    high: Array,
    low: Array,
    weights: Array,
    elect: bool,
    normalize: bool,
    scale: float,
    out: Array,
) -> bool:
    """Round the sum of ``new`` and the accumulators once into ``out``; True if all are finite.

    ``elect``: only the row with the larger magnitude counts, divided by its weights if
    ``normalize``, times ``scale``. If both are equal, none is elected.
    """
    above, below = halves(scale)
    for i in range(out.size):
        value, rest = increased(high[0, i], low[0, i], high[1, i], low[1, i])
        if elect and abs(value) > 0.0:  # false for NaN, which elects no row
            row = 1 if value < 0.0 else 0
            value, rest = high[row, i], low[row, i]
            if normalize:
                value, rest = _divided(value, rest, weights[row, i])
            value, rest = scaled(value, rest, scale, above, below)
        n = _widen(new[i], F64(0))
        if value == 0.0:
            out[i] = _narrow(n, 0.0, out[i])
            continue
        value, rest = increased(n, 0.0, value, rest)
        out[i] = _narrow(value, rest, out[i])
    return _all_finite(out)


@inlined
def _divided(value: Any, rest: Any, divisor: Any) -> Any:
    """``(value + rest) / divisor`` to twice the precision of a float64."""
    quotient = value / divisor
    above, below = halves(divisor)
    product, error = scaled(quotient, 0.0, divisor, above, below)
    return _two_sum(quotient, (((value - product) - error) + rest) / divisor)


@compiled
def look(
    post: Array,
    base: Array,
    prefix: int,
    width: int,
    step: int,
    counts: Array,
    found: Array,
    state: Array,
) -> None:
    """Count the magnitudes ``|post − base|`` whose bits above the lower ``width`` are ``prefix``.

    Magnitudes have the order of the 63 bits of their float64. ``counts``: int64, by the next digit,
    the bits from ``step`` to ``width``. ``found``: int64, the first of these magnitudes in order of
    appearance. ``state``: int64, their number, and all bits that any of them has.
    """
    mask = (I64(1) << I64(width - step)) - I64(1)
    for i in range(post.size):
        difference = _widen(post[i], F64(0)) - _widen(base[i], F64(0))
        bits = I64(f64_bits(difference) & U64(0x7FFFFFFFFFFFFFFF))
        if bits >> width != prefix:
            continue
        counts[(bits >> step) & mask] += 1
        if state[0] < found.size:
            found[state[0]] = bits
        state[0] += 1
        state[1] |= bits
