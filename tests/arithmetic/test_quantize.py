"""float64 into FP8 with a scale a block: against torch, against exact fractions, at the edges."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta.arithmetic.kernels import quantize
from tests.numbers import fp8_values

VALUES = fp8_values("F8_E4M3")
POSITIVE = [Fraction(float(value)) for value in VALUES[:0x7F]]  # 0 to 448, by code
LEAST = 2.0**-126
MOST = float(np.finfo(np.float32).max)


def quantized(values):
    """Codes, scales and how many values were beyond every scale."""
    values = np.ascontiguousarray(values, np.float64)
    codes = np.empty(values.shape, np.uint8)
    scales = np.empty([-(-n // 128) for n in values.shape], np.float32)
    beyond = quantize(values, codes, scales)
    return codes, scales, beyond


def spread(scales, shape):
    """The scale of every element, in float64."""
    wide = scales.astype(np.float64).repeat(128, 0).repeat(128, 1)
    return wide[: shape[0], : shape[1]]


def nearest_code(quotient: Fraction) -> int:
    """The code of an exact number by the definition: the nearest, of two the even; 448 the most."""
    size = abs(quotient)
    code = min(range(0x7F), key=lambda c: (abs(POSITIVE[c] - size), c & 1))
    return code | (0x80 if quotient < 0 else 0)


SHAPES = [(1, 1), (128, 128), (129, 127), (300, 500), (5, 1000), (256, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-30, 0.02, 3e5])
def test_codes_and_scales_are_torchs(shape, size):
    """Whole blocks and cut ones: the same formula with torch's own type, bit for bit."""
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(0, size, shape)
    codes, scales, beyond = quantized(values)
    assert beyond == 0
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            block = torch.from_numpy(values[at].copy())
            scale = (block.abs().max() / 448).float()
            # torch goes by way of float32; none of these quotients is so near to half way.
            code = (block / scale.double()).float().to(torch.float8_e4m3fn)
            assert float(scale) == scales[i, j]
            assert np.array_equal(code.view(torch.uint8).numpy(), codes[at])


FINITE = st.floats(allow_nan=False, allow_infinity=False)
SIMILAR = st.floats(-1, 1, allow_nan=False)


@settings(max_examples=300)
@given(st.lists(st.one_of(FINITE, SIMILAR), min_size=1, max_size=12))
def test_any_finite_values(values):
    """The scale is the definition's; every code is the exact quotient rounded once, never NaN."""
    codes, scales, beyond = quantized([values])
    scale = float(scales[0, 0])
    largest = max(map(abs, values))
    wanted = 1.0 if largest == 0 else min(max(largest / 448, LEAST), MOST)
    assert scale == np.float32(wanted)
    assert beyond == sum(abs(value) > 448 * MOST for value in values)
    for value, code in zip(values, codes[0].tolist(), strict=True):
        exact = Fraction(value) / Fraction(scale)
        assert code & 0x7F == nearest_code(exact) & 0x7F
        assert (code & 0x80 != 0) == (math.copysign(1, value) < 0)


@given(st.integers(0, 0x7D), st.floats(LEAST, 1e30), st.sampled_from((-1, 0, 1)))
def test_half_way_between_two_codes(code, scale, step):
    """A value half way goes to the even code; its neighbors in float64 go to their own side."""
    scale = float(np.float32(scale))
    middle = float((POSITIVE[code] + POSITIVE[code + 1]) / 2) * scale  # exact: 5 bits times 24
    value = float(np.nextafter(middle, step * math.inf)) if step else middle
    codes, scales, _ = quantized([[448 * scale, value]])
    assert scales[0, 0] == scale
    even = code if code % 2 == 0 else code + 1
    assert codes[0, 1] == {-1: code, 0: even, 1: code + 1}[step]


@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_half_a_step_of_the_code(shape):
    """What is read back differs from the value by half an ulp of E4M3 times the scale at most."""
    values = np.random.default_rng(1).standard_t(2, shape)
    codes, scales, _ = quantized(values)
    scale = spread(scales, shape)
    _, exponent = np.frexp(values / scale)
    ulp = np.ldexp(1.0, np.maximum(exponent - 4, -9))
    error = np.abs(VALUES[codes] * scale - values)
    assert (error <= scale * ulp / 2 * (1 + 1e-6)).all()  # 448 (1 + 2^-24) is rounded to 448


@given(st.integers(0, 2**32), st.integers(1, 140), st.integers(1, 140))
def test_what_was_quantized_so_stays(seed, rows, columns):
    """Numbers that are codes times scales, 448 among them, give back codes and scales."""
    chance = np.random.default_rng(seed)
    codes = chance.integers(0, 0x7F, (rows, columns)).astype(np.uint8)
    codes[::128, ::128] = 0x7E
    scales = chance.uniform(1e-6, 1e-3, (-(-rows // 128), -(-columns // 128))).astype(np.float32)
    found, fresh, _ = quantized(VALUES[codes] * spread(scales, codes.shape))
    assert np.array_equal(found, codes)
    assert np.array_equal(fresh, scales)


def test_blocks_of_zeros():
    """A scale of 1 divides; the sign of a zero is kept."""
    codes, scales, _ = quantized([[0.0, -0.0]])
    assert scales.tolist() == [[1.0]]
    assert codes.tolist() == [[0, 0x80]]


def test_what_is_not_finite_spoils_no_other():
    """NaN and infinity become NaN; the scale is that of the finite numbers beside them."""
    codes, scales, beyond = quantized([[math.nan, math.inf, -math.inf, 1.0, -0.5]])
    assert scales[0, 0] == np.float32(1 / 448)
    assert np.isnan(VALUES[codes[0, :3]]).all()
    assert codes[0, 3] == 0x7E
    assert np.isfinite(VALUES[codes[0, 3:]]).all()
    assert beyond == 0
