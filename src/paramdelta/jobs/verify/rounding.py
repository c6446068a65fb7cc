"""Number formats in numpy and in fractions: stored bits as float64, float64 rounded to a dtype.

Sources: IEEE 754-2019 for F64, F32 and F16; bfloat16 is the upper half of an F32; OCP 8-bit
Floating Point Specification (OFP8), revision 1.0, for F8_E4M3 and F8_E5M2; OCP Microscaling
Formats (MX) 1.0 for F8_E8M0.
"""

import math
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.dtypes import DTYPES

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

E4M3_MOST = 448.0
# Exponents of the largest number and of the least normal one.
_RANGE = {"F64": (1023, -1022), "F32": (127, -126), "F16": (15, -14), "BF16": (127, -126)}
_RANGE["F8_E4M3"] = (8, -6)
_F64_DIGITS = 53


def widened(stored: Array, dtype: str) -> Floats:
    """Elements of any real dtype, as `dtypes` views them, in float64.

    Exact, except for integers beyond 2^53.
    """
    if dtype in ("F8_E4M3", "F8_E5M2", "F8_E8M0"):
        return _codes(dtype)[stored]
    if dtype == "BF16":
        wide = stored.astype(np.uint32)
        wide <<= 16
        stored = wide.view(np.float32)
    elif dtype == "F16":
        stored = stored.view(np.float16)
    with np.errstate(invalid="ignore"):  # a signaling NaN becomes a quiet one
        return stored.astype(np.float64)


@cache
def _codes(dtype: str) -> Floats:
    """The numbers of all 256 codes of an 8-bit dtype."""
    code = np.arange(256)
    if dtype == "F8_E8M0":  # an exponent alone
        return np.where(code == 0xFF, np.nan, np.ldexp(1.0, code - 127))
    size = code & 0x7F
    if dtype == "F8_E5M2":  # the upper half of an F16
        value = (size << 8).astype(np.uint16).view(np.float16).astype(np.float64)
    else:  # an F16 whose exponent is 8 too small; without infinity
        value = (size << 7).astype(np.uint16).view(np.float16).astype(np.float64) * 256
        value[size == 0x7F] = np.nan
    return np.where(code & 0x80, -value, value)


def rounded(values: Floats, dtype: str) -> Floats:
    """float64 rounded to nearest even in another dtype, as float64 again; overflow is infinite."""
    if dtype == "F64":
        return values
    highest, least = _RANGE[dtype]
    digits = DTYPES[dtype].digits
    # Normal numbers: half of the last place, less a little at even ones, is added to the bits.
    dropped = _F64_DIGITS - digits
    bits = values.view(np.int64)
    sums = bits >> dropped
    sums &= 1
    sums += (1 << (dropped - 1)) - 1
    sums += bits
    sums &= -(1 << dropped)
    result: Floats = sums.view(np.float64)
    size = np.abs(result)
    normal = (size >= math.ldexp(1, least)) & (size <= _largest(highest, digits))
    if not normal.all():
        rest = np.flatnonzero(~normal & (values != 0))
        result[rest] = _by_definition(values[rest], dtype)
    return result


def _by_definition(values: Floats, dtype: str) -> Floats:
    """As `rounded`, for any value: to a multiple of the dtype's step at that place."""
    highest, least = _RANGE[dtype]
    digits = DTYPES[dtype].digits
    _, exponent = np.frexp(values)
    step = np.maximum(exponent - digits, least - digits + 1)
    with np.errstate(over="ignore"):
        result: Floats = np.ldexp(np.rint(np.ldexp(values, -step)), step)
    beyond = np.abs(result) > _largest(highest, digits)
    result = np.where(beyond, np.copysign(np.inf, values), result)
    return np.where(np.isfinite(values), result, values)


def _largest(highest: int, digits: int) -> float:
    return math.ldexp(2 - 2.0 ** (1 - digits), highest)


def is_rounded(exact: Fraction, slack: Fraction, got: float, dtype: str, allowed: Fraction) -> bool:
    """Whether ``got`` is a number of ``dtype`` to which an exact value may be rounded.

    ``slack``: how far the value that was rounded may be from the exact one. ``allowed``: the
    distance that is accepted, in units of the last place; of one half, ties must go to even.
    """
    digits = DTYPES[dtype].digits
    highest, least = _RANGE[dtype]
    if math.isnan(got):
        return False
    if math.isinf(got):
        limit = Fraction(2) ** (highest + 1) - Fraction(2) ** (highest - digits)
        return abs(exact) + slack >= limit and (exact > 0) == (got > 0)
    mantissa, exponent = math.frexp(got)
    if abs(mantissa) == 0.5 and abs(exact) < abs(Fraction(got)):
        exponent -= 1  # below a power of two the numbers are twice as close
    if got == 0:
        exponent = least
    ulp = Fraction(2) ** max(exponent - digits, least - digits + 1)
    error = abs(exact - Fraction(got))
    if allowed == Fraction(1, 2) and not slack and error == ulp / 2:
        return int(Fraction(got) / ulp) % 2 == 0
    return error <= allowed * ulp + slack


def nearest_e4m3(value: Fraction) -> float:
    """The nearest number of F8_E4M3, the even one of two; beyond the largest it is that."""
    value = max(Fraction(-E4M3_MOST), min(Fraction(E4M3_MOST), value))
    _, exponent = math.frexp(value)
    step = Fraction(2) ** max(exponent - 4, -9)
    return float(round(value / step) * step)


def as_float(value: Fraction) -> float:
    """The nearest float64; infinite beyond the largest."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
