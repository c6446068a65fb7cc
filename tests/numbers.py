"""Reference arithmetic for tests: exact fractions, and rounding written from the definition."""

import math
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

# dtype: (digits with the hidden one, exponent of the largest value, least normal exponent)
FORMATS = {"F64": (53, 1023, -1022), "F32": (24, 127, -126), "F16": (11, 15, -14)}
FORMATS["BF16"] = (8, 127, -126)
VIEWS = {"F64": np.float64, "F32": np.float32, "F16": np.int16, "BF16": np.uint16}
BITS = {"F64": np.uint64, "F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


def decode(bits: int, dtype: str) -> float:
    """The value of a bit pattern, by numpy's own formats (bfloat16 is the top half of float32)."""
    if dtype == "BF16":
        return float(np.array([bits << 16], np.uint32).view(np.float32)[0])
    kind = {"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]
    return float(np.array([bits], BITS[dtype]).view(kind)[0])


def fp8_values(dtype: str) -> np.ndarray:
    """The 256 values of F8_E4M3 (no infinity; all ones is NaN) or F8_E5M2 (as IEEE 754)."""
    exponent_bits, mantissa_bits = {"F8_E4M3": (4, 3), "F8_E5M2": (5, 2)}[dtype]
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code & 0x7F) >> mantissa_bits
    mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    value = np.where(
        exponent == 0,
        np.ldexp(mantissa, 1 - bias),
        np.ldexp(1 + mantissa, exponent - bias),
    )
    if dtype == "F8_E4M3":
        value = np.where((code & 0x7F) == 0x7F, np.nan, value)
    else:
        top = exponent == (1 << exponent_bits) - 1
        value = np.where(top, np.where(mantissa == 0, np.inf, np.nan), value)
    return sign * value


def ulp(exact: Fraction, dtype: str) -> Fraction:
    """The distance of neighboring numbers of a format at a value."""
    digits, _, least = FORMATS[dtype]
    if exact == 0:
        return Fraction(2) ** (least - digits + 1)
    exponent = math.floor(math.log2(abs(exact.numerator))) - math.floor(
        math.log2(exact.denominator)
    )
    while Fraction(2) ** exponent > abs(exact):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(exact):
        exponent += 1
    return Fraction(2) ** (max(exponent, least) - digits + 1)


def nearest(exact: Fraction, dtype: str) -> float:
    """An exact value rounded to nearest even; infinite where IEEE 754 says so."""
    digits, highest, _ = FORMATS[dtype]
    quantum = ulp(exact, dtype)
    value = round(exact / quantum) * quantum  # Fraction's round is to nearest even
    limit = (2 - Fraction(2) ** (1 - digits)) * Fraction(2) ** highest
    if abs(value) > limit:
        return math.inf if exact > 0 else -math.inf
    return float(value)


def array(bits: list[int], dtype: str) -> np.ndarray:
    """Bit patterns as the kernels see them."""
    return np.array(bits, BITS[dtype]).view(VIEWS[dtype])


def patterns(dtype: str) -> st.SearchStrategy[int]:
    """Bit patterns of a dtype: any at all, and often the awkward ones.

    Zeros of both signs, subnormals, ones, neighbors of powers of two, the largest, infinities,
    NaN; and numbers of about one size, as weights are.
    """
    width = 16 if dtype in ("F16", "BF16") else int(dtype[1:])
    digits, highest, _ = FORMATS[dtype]
    mantissa = digits - 1
    top = (1 << (width - 1 - mantissa)) - 1
    one = highest << mantissa
    edges = [0, 1, 2, (1 << mantissa) - 1, 1 << mantissa, one, one - 1, one + 1]
    edges += [(top << mantissa) - 1, top << mantissa, (top << mantissa) | 1]
    edges = [edge | sign << (width - 1) for edge in edges for sign in (0, 1)]
    similar = st.integers(-12, 3).flatmap(
        lambda e: st.integers(0, (1 << mantissa) - 1).map(lambda m: one + (e << mantissa) + m)
    )
    signed = st.tuples(similar, st.sampled_from((0, 1))).map(lambda p: p[0] | p[1] << (width - 1))
    return st.one_of(st.integers(0, (1 << width) - 1), st.sampled_from(edges), signed)
