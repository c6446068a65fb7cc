"""Rounding and widening by verify are those of the definitions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.dtypes import DTYPES
from paramdelta.jobs.verify.rounding import as_float, is_rounded, nearest_e4m3, rounded, widened
from tests.numbers import array, decode, fp8_values, nearest, patterns

HALF = Fraction(1, 2)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_rounding_is_to_nearest_even(dtype, value):
    """Any float64, subnormals and overflow included, by Python's fractions."""
    assert float(rounded(np.array([value]), dtype)[0]) == nearest(Fraction(value), dtype)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@given(st.data())
def test_ties_and_neighbors_of_ties(dtype, data):
    """Numbers of the dtype, the middles between them, and the float64 next to a middle."""
    number = decode(data.draw(patterns(dtype)), dtype)
    digits = DTYPES[dtype].digits
    step = math.ldexp(1, math.frexp(number)[1] - digits) if math.isfinite(number) else 0.0
    middle = number + step / 2
    values = [number, middle, np.nextafter(middle, math.inf), np.nextafter(middle, -math.inf)]
    for value in filter(math.isfinite, map(float, values)):
        assert float(rounded(np.array([value]), dtype)[0]) == nearest(Fraction(value), dtype)


def test_rounding_keeps_what_is_not_finite():
    """Infinity, NaN of either sign and zeros stay what they are."""
    for dtype in ("BF16", "F16", "F32", "F8_E4M3"):
        values = np.array([math.inf, -math.inf, math.nan, -math.nan, 0.0, -0.0])
        found = rounded(values, dtype)
        assert np.array_equal(found, values, equal_nan=True)
        assert np.array_equal(np.signbit(found[-2:]), [False, True])


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@given(st.data())
def test_widening_is_exact(dtype, data):
    """Any bits in float64 are the number that they stand for."""
    bits = data.draw(st.lists(patterns(dtype), min_size=1, max_size=20))
    expected = [decode(one, dtype) for one in bits]
    assert np.array_equal(widened(array(bits, dtype), dtype), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_all_codes_of_8_bits(dtype):
    """The numbers of OFP8."""
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(widened(codes, dtype), fp8_values(dtype), equal_nan=True)


def test_scales_that_are_exponents():
    """F8_E8M0 holds powers of two, and one NaN."""
    found = widened(np.array([0, 127, 254, 255], np.uint8), "F8_E8M0")
    assert np.array_equal(found, [2.0**-127, 1.0, 2.0**127, math.nan], equal_nan=True)


@given(st.floats(-1e4, 1e4))
def test_codes_are_nearest(value):
    """E4M3 from a fraction and from float64, against all codes."""
    finite = fp8_values("F8_E4M3")
    finite = finite[np.isfinite(finite)]
    exact = Fraction(value)
    least = min(abs(Fraction(float(code)) - exact) for code in finite)
    found = nearest_e4m3(exact)
    assert abs(Fraction(found) - exact) == least
    clipped = np.clip(np.array([value]), -448, 448)
    assert float(rounded(clipped, "F8_E4M3")[0]) == found


def test_fractions_beyond_float64():
    """They are infinite, and the largest code."""
    assert as_float(Fraction(10) ** 400) == math.inf
    assert as_float(-(Fraction(10) ** 400)) == -math.inf
    assert nearest_e4m3(-(Fraction(10) ** 400)) == -448


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_just_below_a_power_of_two(dtype):
    """There the numbers are twice as close: the power itself is wrong for the one below it."""
    step = Fraction(1, 2 ** DTYPES[dtype].digits)  # from the number below 1 to 1
    for sign in (1, -1):
        for exact, right in (
            (1 - step, False),
            (1 - step / 2, True),
            (1 + step, True),
            (1 + 3 * step / 2, False),
        ):
            assert is_rounded(sign * exact, Fraction(0), sign * 1.0, dtype, HALF) is right


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@given(st.data())
def test_only_the_nearest_is_accepted(dtype, data):
    """At one half of the last place a number is right if, and only if, it is the rounded one."""
    exact = Fraction(data.draw(st.floats(-1e30, 1e30)))
    exact += Fraction(data.draw(st.floats(-1, 1))) * exact / 2**60
    got = decode(data.draw(patterns(dtype)), dtype)
    near = nearest(exact, dtype)
    assert is_rounded(exact, Fraction(0), near, dtype, HALF)
    if got != near:
        assert not is_rounded(exact, Fraction(0), got, dtype, HALF)


def test_nan_is_never_right():
    """A NaN in the output where the sum is finite is a difference, and no crash."""
    assert not is_rounded(Fraction(1), Fraction(0), math.nan, "BF16", HALF)
