"""The arithmetic of mixing: pure functions on arrays, compiled by numba. No I/O, no names.

The result is the correctly rounded n + Σ α (p − b). Equal p and b cancel, infinities too: they are
constants, such as the bounds of a clip, and not weights.

A float cannot hold p − b in general, so every sum carries its rounding error (Knuth's TwoSum,
Dekker's TwoProduct). The last step folds the remaining error into the last bit ("round to odd");
one rounding to nearest even then gives the correctly rounded result (Boldo and Melquiond,
"Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE Trans.
Comp. 2008).

- `mix_exact`: one Δ at scale 1 in a single pass. 16-bit operands are added as float32, wider ones
  as float64. F16, BF16 and F32 results are the correctly rounded exact sum.
- `mix_codes`: the same for FP8 operands, which are decoded on the way.
- `begin`, `add`, `finish`: any number of Δs at any scale, in double-double accumulators.
- `subtract`: a Δ alone, in float64.
- `quantize`: float64 to FP8 with a scale for each block.

Arrays are one-dimensional and contiguous, of equal length (`quantize` takes matrices); BF16 is
stored as uint16 and F16 as int16 (see `paramdelta.dtypes`). Every kernel releases the GIL.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from paramdelta.arithmetic.compiled import (
    compiled,
    f32_bits,
    f32_from_bits,
    f64_bits,
    f64_from_bits,
    inlined,
)
from paramdelta.arithmetic.fp8 import MOVED, Codes, has_numbers_only, moved_e4m3, scales_of
from paramdelta.dtypes import FP8_SIDE

Array = npt.NDArray[Any]
U16, I16, U32, U64 = np.uint16, np.int16, np.uint32, np.uint64
F32, F64 = np.float32, np.float64
U8, I64 = np.uint8, np.int64
SIDE = FP8_SIDE
LEAST, MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal float32 numbers
PLAIN = 1024  # elements that are computed again together if a sum was not exact


# -- from storage to a wide float -----------------------------------------------------------------


@inlined
def _f32_from_bf16(bits: Any) -> Any:
    return f32_from_bits(U32(U32(bits) << U32(16)))


@inlined
def _f32_from_f16(bits: Any) -> Any:
    half = U32(bits) & U32(0xFFFF)
    # After the shift the exponent is 112 too small. The product corrects it, subnormals included.
    magnitude = U32(U32(half & U32(0x7FFF)) << U32(13))
    special = U32(0x7F800000) if magnitude >= U32(0x0F800000) else U32(0)
    value = f32_bits(F32(f32_from_bits(magnitude) * F32(2.0**112)))
    chosen = U32(magnitude | special) if special != U32(0) else value
    return f32_from_bits(U32(chosen | U32(U32(half & U32(0x8000)) << U32(16))))


def _widen(value: Any, wide: Any) -> Any:
    """The exact value of a stored element in the float type of ``wide``."""
    raise NotImplementedError


@overload(_widen, strict=False)
def _widen_overload(value: Any, wide: Any) -> Any:
    if value == types.uint16 and wide == types.float32:
        return lambda value, wide: _f32_from_bf16(value)
    if value == types.int16 and wide == types.float32:
        return lambda value, wide: _f32_from_f16(value)
    if value == types.uint16:
        return lambda value, wide: F64(_f32_from_bf16(value))
    if value == types.int16:
        return lambda value, wide: F64(_f32_from_f16(value))
    if wide == types.float64:
        return lambda value, wide: F64(value)
    return None


def _bits(value: Any) -> Any:
    """The bits of a wide float."""
    raise NotImplementedError


@overload(_bits, strict=False)
def _bits_overload(value: Any) -> Any:
    if value == types.float32:
        return lambda value: f32_bits(value)
    return lambda value: f64_bits(value)


def _word(bits: Any, wide: Any) -> Any:
    """Bits as an unsigned integer as wide as ``wide``: numba widens combined integers."""
    raise NotImplementedError


@overload(_word, strict=False)
def _word_overload(bits: Any, wide: Any) -> Any:
    if wide == types.float32:
        return lambda bits, wide: U32(bits)
    return lambda bits, wide: U64(bits)


# -- from a wide float and its rounding error to stored numbers -----------------------------------


@inlined
def _odd32(value: Any, rest: Any) -> Any:
    """Bits of float32 ``value + rest`` rounded to odd; |rest| is under one ulp of value."""
    bits = f32_bits(value)
    step = U32(1) if (rest > F32(0)) == (value > F32(0)) else U32(0xFFFFFFFF)
    inexact_even = (rest != F32(0)) & (U32(bits & U32(1)) == U32(0))
    return U32(bits + (step if inexact_even else U32(0)))


@inlined
def _odd32_of_f64(value: Any, rest: Any) -> Any:
    """Bits of float64 ``value + rest`` rounded to odd in float32."""
    narrow = F32(value)
    left = value - F64(narrow)
    left = left if left != 0.0 else rest
    bits = f32_bits(narrow)
    step = U32(1) if (left > 0.0) == (value > 0.0) else U32(0xFFFFFFFF)
    inexact_even = ((left > 0.0) | (left < 0.0)) & (U32(bits & U32(1)) == U32(0))
    return U32(bits + (step if inexact_even else U32(0)))


@inlined
def _bf16_from_f32_bits(bits: Any) -> Any:
    rounded = U32(U32(bits + U32(0x7FFF)) + U32(U32(bits >> U32(16)) & U32(1))) >> U32(16)
    is_nan = U32(bits & U32(0x7FFFFFFF)) > U32(0x7F800000)
    return U16((U32(bits >> U32(16)) | U32(0x40)) if is_nan else U32(rounded))


@inlined
def _f16_from_f32_bits(bits: Any) -> Any:
    sign = U32(bits >> U32(16)) & U32(0x8000)
    magnitude = U32(bits & U32(0x7FFFFFFF))
    odd = U32(magnitude >> U32(13)) & U32(1)
    normal = U32(U32(magnitude + U32(0xC8000FFF)) + odd) >> U32(13)
    # 0.5 has an ulp of 2^-24, the quantum of F16 subnormals: the addition rounds to it.
    shifted = f32_bits(F32(f32_from_bits(magnitude) + F32(0.5)))
    subnormal = U32(shifted - U32(0x3F000000))
    result = U32(normal) if magnitude >= U32(0x38800000) else subnormal
    result = U32(0x7C00) if magnitude >= U32(0x477FF000) else result
    result = U32(0x7E00) if magnitude > U32(0x7F800000) else result
    return I16(U16(U32(result | sign)))


@inlined
def _odd64(value: Any, rest: Any) -> Any:
    """Float64 ``value + rest`` rounded to odd; |rest| is under one ulp of value."""
    bits = f64_bits(value)
    step = U64(1) if (rest > 0.0) == (value > 0.0) else U64(0xFFFFFFFFFFFFFFFF)
    inexact_even = (rest != 0.0) & (U64(bits & U64(1)) == U64(0))
    return f64_from_bits(U64(bits + (step if inexact_even else U64(0))))


def _narrow(value: Any, rest: Any, stored: Any) -> Any:
    """``value + rest`` rounded once, to nearest even, into the storage type of ``stored``."""
    raise NotImplementedError


@overload(_narrow, strict=False)
def _narrow_overload(value: Any, rest: Any, stored: Any) -> Any:
    if value == types.float32:
        if stored == types.uint16:
            return lambda value, rest, stored: _bf16_from_f32_bits(_odd32(value, rest))
        if stored == types.int16:
            return lambda value, rest, stored: _f16_from_f32_bits(_odd32(value, rest))
        return None
    if stored == types.uint16:
        return lambda value, rest, stored: _bf16_from_f32_bits(_odd32_of_f64(value, rest))
    if stored == types.int16:
        return lambda value, rest, stored: _f16_from_f32_bits(_odd32_of_f64(value, rest))
    if stored == types.float32:
        return lambda value, rest, stored: F32(_odd64(value, rest))
    if stored == types.float64:
        return lambda value, rest, stored: value
    return None


@inlined
def _odd32_of_normal(value: Any) -> Any:
    """Bits of a float64 rounded to odd in float32. The value is zero or normal in float32."""
    bits = f64_bits(value)
    away = U64((1 << 29) - 1)
    carry = U64(U64(bits & away) + away)  # reaches the last kept bit if any dropped bit is set
    return f32_bits(F32(f64_from_bits(U64(U64(bits | carry) & U64(0xFFFFFFFFE0000000)))))


@inlined
def _with_bf16_subnormals(value: Any) -> Any:
    """A float64; below BF16's normal numbers it is rounded to nearest even in BF16."""
    bits = f64_bits(value)
    # Adding 1.5 · 2^-81 rounds to multiples of 2^-133, BF16's quantum there.
    size = f64_from_bits(U64(bits & U64(0x7FFFFFFFFFFFFFFF)))
    rounded = U64(f64_bits((size + 1.5 * 2.0**-81) - 1.5 * 2.0**-81) | U64(bits & U64(1 << 63)))
    return f64_from_bits(U64(rounded) if size < LEAST else U64(bits))


def _narrow_normal(value: Any, stored: Any) -> Any:
    """`_narrow_exact` of a value that is zero or normal in float32."""
    raise NotImplementedError


@overload(_narrow_normal, strict=False)
def _narrow_normal_overload(value: Any, stored: Any) -> Any:
    if stored == types.uint16:
        return lambda value, stored: _bf16_from_f32_bits(_odd32_of_normal(value))
    return lambda value, stored: _narrow_exact(value, stored)


def _narrow_exact(value: Any, stored: Any) -> Any:
    """``value`` rounded once, to nearest even, into the storage type of ``stored``."""
    raise NotImplementedError


@overload(_narrow_exact, strict=False)
def _narrow_exact_overload(value: Any, stored: Any) -> Any:
    if value == types.float32 and stored == types.uint16:
        return lambda value, stored: _bf16_from_f32_bits(f32_bits(value))
    if value == types.float32 and stored == types.int16:
        return lambda value, stored: _f16_from_f32_bits(f32_bits(value))
    if stored == types.float32:
        return lambda value, stored: F32(value)
    if stored == types.uint16:
        return lambda value, stored: _narrow_normal(_with_bf16_subnormals(value), stored)
    return lambda value, stored: _narrow(value, value - value, stored)


def _finite(stored: Any) -> Any:
    """Whether a stored element is neither infinite nor NaN."""
    raise NotImplementedError


@overload(_finite, strict=False)
def _finite_overload(stored: Any) -> Any:
    if stored == types.uint16:
        return lambda stored: U32(U32(stored) & U32(0x7F80)) != U32(0x7F80)
    if stored == types.int16:
        return lambda stored: U32(U32(stored) & U32(0x7C00)) != U32(0x7C00)
    return lambda stored: (stored - stored) == 0


@inlined
def _all_finite(stored: Any) -> Any:
    # A separate loop: inside the arithmetic it prevents vectorization (twice as slow).
    broken = U32(0)
    for i in range(stored.size):
        broken |= U32(0) if _finite(stored[i]) else U32(1)
    return broken == U32(0)


# -- the kernels ----------------------------------------------------------------------------------


@inlined
def _two_sum(a: Any, b: Any) -> Any:
    """a + b as the rounded sum and its exact error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@inlined
def halves(value: Any) -> Any:
    """A float64 as the sum of two numbers of 26 bits (Dekker): products of halves are exact."""
    split = 134217729.0 * value  # 2^27 + 1
    high = split - (split - value)
    return high, value - high


@inlined
def scaled(value: Any, rest: Any, scale: Any, scale_high: Any, scale_low: Any) -> Any:
    """``scale · (value + rest)`` as the rounded product and its error."""
    product = scale * value
    if abs(value) < 1e290:
        upper, lower = halves(value)
        rest = scale * rest + (
            ((scale_high * upper - product) + scale_high * lower + scale_low * upper)
            + scale_low * lower
        )
    return product, rest


@inlined
def increased(high: Any, low: Any, value: Any, rest: Any) -> Any:
    """The accumulator ``high + low`` with ``value + rest`` added."""
    total, error = _two_sum(high, value)
    if (total - total) != 0.0:  # infinite or NaN, which carries no rounding error
        return total, 0.0
    below, error2 = _two_sum(low, error + rest)
    total, below = _two_sum(total, below)
    return total, below + error2


# Blocks are separate functions on views: indexing with an offset would prevent vectorization.


@inlined
def _mix_plainly(new: Any, post: Any, base: Any, out: Any, wide: Any) -> Any:
    """``out = new + (post − base)``; False if a sum was not exact, so the result may be wrong.

    A sum is exact if subtracting either operand gives the other: of the two differences, that of
    the larger operand is exact (Dekker). Comparing bits also finds NaN, infinity, and negative
    zeros whose sign a plain sum loses.
    """
    doubt = _bits(wide)  # no bit set, in the type that fits
    for i in range(out.size):
        n = _widen(new[i], wide)
        p = _widen(post[i], wide)
        b = _widen(base[i], wide)
        difference = p - b
        total = n + difference
        doubt = _word(
            doubt
            | (_bits(p - difference) ^ _bits(b))
            | (_bits(difference + b) ^ _bits(p))
            | (_bits(total - difference) ^ _bits(n))
            | (_bits(total - n) ^ _bits(difference)),
            wide,
        )
        out[i] = _narrow_exact(total, out[i])
    return doubt == _bits(wide)


@inlined
def _mix_carefully(new: Any, post: Any, base: Any, out: Any, wide: Any) -> Any:
    for i in range(out.size):
        n = _widen(new[i], wide)
        p = _widen(post[i], wide)
        b = _widen(base[i], wide)
        difference, error = _two_sum(p, -b)
        total, error2 = _two_sum(n, difference)
        error, error3 = _two_sum(error, error2)
        value, rest = _two_sum(total, error)
        rest = rest if rest != 0 else error3
        broken = (total - total) != 0  # infinite or NaN, which carries no rounding error
        infinite = n if p == b else (p if n == b else total)
        value, rest = (infinite, wide) if broken else (value, rest)
        zero = p if _bits(n) == _bits(b) else (n if _bits(p) == _bits(b) else wide)
        out[i] = _narrow(zero if value == 0 else value, rest, out[i])


@compiled
def mix_exact(new: Array, post: Array, base: Array, out: Array, wide: Any) -> bool:
    """``out = new + (post − base)``, correctly rounded; True if every result is finite.

    ``wide`` is a float32 or float64 zero: the type in which to add. float32 is wide enough where
    all four arrays are 16-bit. Where float32 overflows on the way, the result is not finite and the
    caller repeats the work with `begin`, `add` and `finish`.

    A sum that is exactly zero gets the sign that makes ``base = new`` give back post and ``post =
    base`` give back new, bit for bit.

    In most blocks of real weights every sum is exact. The others are computed again with errors.
    """
    finite = True
    for start in range(0, out.size, PLAIN):
        stop = min(start + PLAIN, out.size)
        n, p, b, o = new[start:stop], post[start:stop], base[start:stop], out[start:stop]
        if not _mix_plainly(n, p, b, o, wide):
            _mix_carefully(n, p, b, o, wide)
        finite &= _all_finite(o)
    return finite


# -- operands in FP8 -------------------------------------------------------------------------------


@inlined
def _exponent(scale: Any) -> Any:
    """The binary exponent of a scale; −5000 if it is zero, not finite or not a float32."""
    bits = f64_bits(scale)
    exponent = I64(U64(bits >> U64(52)) & U64(0x7FF)) - I64(1023)
    return exponent if U64(bits & U64((1 << 29) - 1)) == U64(0) else I64(-5000)


@inlined
def _add_exactly(one: Any, two: Any, three: Any) -> Any:
    """Whether products of these scales with E4M3 codes are always added exactly, and every sum is
    zero or normal in float32.

    With the exponent e of a scale, the product is a multiple of 2^(e − 32), because the code is a
    multiple of 2^-9 and the scale of 2^(e − 23). It is below 2^(e + 10), so no sum of three reaches
    2^(e + 12). If the exponents differ by at most 9, all sums fit in 53 bits. If none is below -94,
    no multiple is below 2^-126.
    """
    e, f, g = _exponent(one), _exponent(two), _exponent(three)
    least, most = min(e, f, g), max(e, f, g)
    return least >= -94 and most < 128 and most - least <= 9


@inlined
def _add_codes(
    new: Any, post: Any, base: Any, start: Any, stop: Any, n: Any, p: Any, b: Any, out: Any
) -> Any:
    of_new, of_post, of_base = n * MOVED, p * MOVED, b * MOVED
    # Indices without a sign: numba counts negative ones from the end, which forbids vectors.
    for i in range(U64(start), U64(stop)):
        n = F64(moved_e4m3(new[i])) * of_new
        p = F64(moved_e4m3(post[i])) * of_post
        b = F64(moved_e4m3(base[i])) * of_base
        total = n + (p - b)
        zero = p if f64_bits(n) == f64_bits(b) else (n if f64_bits(p) == f64_bits(b) else 0.0)
        out[i] = _narrow_normal(zero if total == 0.0 else total, out[i])


@compiled
def mix_codes(new: Codes, post: Codes, base: Codes, out: Array) -> bool:
    """`mix_exact` of one run of three FP8 matrices: the same bits, straight from the codes, so that
    no float64 goes through memory.

    False if a number is not finite, or the scales do not guarantee exact sums. Then the caller
    decodes and repeats the work with `mix_exact`.
    """
    if not (has_numbers_only(new) and has_numbers_only(post) and has_numbers_only(base)):
        return False
    row, column, at = 0, new.column, 0
    while at < out.size:
        of_new, of_post, of_base = scales_of(new, row), scales_of(post, row), scales_of(base, row)
        x, y, z = column // new.width, column // post.width, column // base.width
        end = min(new.columns, column + out.size - at)
        while column < end:
            right = min((x + 1) * new.width, (y + 1) * post.width, (z + 1) * base.width, end)
            stop = at + right - column
            n, p, b = of_new[x], of_post[y], of_base[z]
            if not _add_exactly(n, p, b):
                return False
            _add_codes(new.codes, post.codes, base.codes, at, stop, n, p, b, out)
            at, column = stop, right
            x += 1 if right == (x + 1) * new.width else 0
            y += 1 if right == (y + 1) * post.width else 0
            z += 1 if right == (z + 1) * base.width else 0
        row, column = row + 1, 0
    return _all_finite(out)


# -- any scale, any number of Δ --------------------------------------------------------------------


@compiled
def begin(new: Array, high: Array, low: Array) -> None:
    """Start the float64 accumulators ``high + low`` at ``new``."""
    for i in range(new.size):
        high[i] = _widen(new[i], F64(0))
        low[i] = 0.0


@compiled
def add(post: Array, base: Array, scale: float, high: Array, low: Array) -> None:
    """Add ``scale (post − base)`` to the float64 accumulators ``high + low``, with its error."""
    scale_high, scale_low = halves(scale)
    for i in range(post.size):
        p = _widen(post[i], F64(0))
        b = _widen(base[i], F64(0))
        difference, error = _two_sum(p, -b)
        if difference == 0.0 or p == b:
            continue  # equal infinities cancel, and a negative zero stays in the accumulator
        product, error = scaled(difference, error, scale, scale_high, scale_low)
        high[i], low[i] = increased(high[i], low[i], product, error)


@compiled
def finish(high: Array, low: Array, out: Array) -> bool:
    """Round the accumulators once into ``out``; True if every result is finite."""
    for i in range(out.size):
        value, rest = high[i], low[i]
        if rest != 0.0:  # otherwise a negative zero would lose its sign
            value, rest = _two_sum(value, rest)
        out[i] = _narrow(value, rest, out[i])
    return _all_finite(out)


# -- into FP8 -------------------------------------------------------------------------------------


@compiled
def subtract(post: Array, base: Array, out: Array) -> bool:
    """``out = post − base`` in float64, rounded if that is too narrow; True if all are finite."""
    total = 0.0
    for i in range(out.size):
        p, b = _widen(post[i], F64(0)), _widen(base[i], F64(0))
        out[i] = 0.0 if p == b else p - b
        total += out[i] * 0.0  # NaN unless finite
    return total == 0.0


@inlined
def _e4m3(value: Any) -> Any:
    """The E4M3 code of a float64, rounded to nearest even. Values beyond 448 become 448.

    Infinity, which E4M3 lacks, and NaN become NaN.
    """
    bits = f64_bits(value)
    sign = U64(bits >> U64(56)) & U64(0x80)
    magnitude = U64(bits & U64(0x7FFFFFFFFFFFFFFF))
    odd = U64(magnitude >> U64(49)) & U64(1)
    normal = U64(U64(U64(magnitude + U64(0xFFFFFFFFFFFF)) + odd) >> U64(49)) - U64((1023 - 7) << 3)
    # 2^43 has an ulp of 2^-9, the quantum of E4M3's subnormals: the addition rounds to it.
    shifted = f64_bits(f64_from_bits(magnitude) + 2.0**43)
    subnormal = U64(shifted - U64((1023 + 43) << 52))
    code = U64(normal) if magnitude >= U64((1023 - 6) << 52) else subnormal
    code = U64(code) if magnitude < U64((1023 + 9) << 52) else U64(0x7E)
    code = U64(0x7E) if code > U64(0x7E) else U64(code)
    code = U64(0x7F) if magnitude >= U64(0x7FF0000000000000) else U64(code)
    return U8(U64(code | sign))


@inlined
def _largest(row: Any) -> Any:
    """The bits of the largest finite magnitude: magnitudes have the order of their bits."""
    largest = I64(0)
    for i in range(row.size):
        bits = I64(f64_bits(row[i]) & U64(0x7FFFFFFFFFFFFFFF))
        bits = bits if bits < I64(0x7FF0000000000000) else I64(0)
        largest = bits if bits > largest else largest
    return largest


@inlined
def _divided(row: Any, scale: Any, codes: Any) -> Any:
    for i in range(row.size):
        codes[i] = _e4m3(row[i] / scale)


@compiled
def quantize(values: Array, codes: Array, scales: Array) -> int:
    """``values ≈ codes · scales``, a scale for each block of 128 × 128; smaller blocks at the
    edges.

    ``values``: float64 (R, C). ``codes``: uint8 (R, C), E4M3 (OCP OFP8). ``scales``: float32
    (⌈R/128⌉, ⌈C/128⌉). Returns how many finite values exceed what a float32 scale can represent;
    they become the largest value that it can.

    A scale is the largest finite magnitude of its block divided by 448, the largest E4M3 number, in
    float64, rounded to float32, and at least float32's smallest normal number, because software
    that uses scales may flush subnormals to zero. A block of zeros has the scale 1.

    A code is ``value / scale``, rounded to nearest even once. The quotient is rounded to float64
    first, but that changes no code: a number halfway between two codes has 5 bits, so its product
    with the 24-bit scale is a float64. A value that is not this product differs from it by at least
    its ulp, more than the rounding of the quotient can hide. Infinite values become NaN.
    """
    beyond = 0
    for top in range(0, values.shape[0], SIDE):
        bottom = min(top + SIDE, values.shape[0])
        for left in range(0, values.shape[1], SIDE):
            right = min(left + SIDE, values.shape[1])
            largest = I64(0)
            for i in range(top, bottom):
                largest = max(largest, _largest(values[i, left:right]))
            scale = F64(F32(max(f64_from_bits(U64(largest)) / 448.0, LEAST)))
            scale = 1.0 if largest == 0 else scale
            if scale > MOST:
                scale = MOST
                for i in range(top, bottom):
                    for j in range(left, right):
                        size = abs(values[i, j])
                        beyond += 1 if 448.0 * MOST < size < np.inf else 0
            scales[top // SIDE, left // SIDE] = F32(scale)
            for i in range(top, bottom):
                _divided(values[i, left:right], scale, codes[i, left:right])
    return beyond
