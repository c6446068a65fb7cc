"""The kernels against exact fractions, over every kind of number."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta.arithmetic import kernels
from paramdelta.dtypes import DTYPES
from paramdelta.formats.view import Tensor
from paramdelta.schemes.pair import Pair
from paramdelta.schemes.scheme import BLOCK, SCRATCH
from paramdelta.schemes.sum import SUM
from tests.numbers import BITS, array, decode, nearest, patterns, ulp

DTYPE_NAMES = ("F64", "F32", "F16", "BF16")
COMBINATIONS = list(itertools.product(DTYPE_NAMES, repeat=4))


def mix(out, operands, dtypes, scales):
    """Run the plain sum on bit patterns: operands are new, post, base, post, base, …"""
    tensors = [Tensor("t", d, (len(o),), None, 0, 0) for o, d in zip(operands, dtypes, strict=True)]
    pairs = tuple(
        Pair(i, tensors[1 + 2 * i], tensors[2 + 2 * i], scale) for i, scale in enumerate(scales)
    )
    arrays = [array(o, d) for o, d in zip(operands, dtypes, strict=True)]
    result = np.empty(len(operands[0]), DTYPES[out].numpy)
    finite = SUM.combine(pairs, arrays, 0, result, out, np.empty((SCRATCH, BLOCK)))
    return result.view(BITS[out]), finite


def exact(values, scales):
    """The formula in fractions; None if it is not finite. Equal infinities cancel."""
    first, *rest = values
    terms = [
        (scale, post, base)
        for scale, post, base in zip(scales, rest[::2], rest[1::2], strict=True)
        if post != base
    ]
    if len(scales) == len(terms) == 1 and abs(scales[0]) == 1:
        plus, minus = rest[:: int(scales[0])]
        first, terms = (plus, []) if first == minus else (first, terms)
    if not all(map(math.isfinite, (first, *(n for term in terms for n in term)))):
        return None
    deltas = (Fraction(scale) * (Fraction(post) - Fraction(base)) for scale, post, base in terms)
    return sum(deltas, Fraction(first))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_scale_one_is_correctly_rounded(dtype):
    """At scale 1 and one dtype the result is the exact sum, rounded once to nearest even."""

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(*[patterns(dtype)] * 3), min_size=1, max_size=64))
    def check(rows):
        operands = [list(column) for column in zip(*rows, strict=True)]
        got, finite = mix(dtype, operands, [dtype] * 3, [1.0])
        all_finite = True
        for row, bits in zip(rows, got, strict=True):
            total = exact([decode(b, dtype) for b in row], [1.0])
            value = decode(int(bits), dtype)
            if total is None:
                assert not math.isfinite(value)
            else:
                assert value == nearest(total, dtype), row
            all_finite &= math.isfinite(value)
        assert finite == all_finite

    check()


def test_every_combination_of_dtypes_is_correctly_rounded():
    """Any mixture of input dtypes into F16, BF16 or F32 is correctly rounded at scale 1."""
    chance = np.random.default_rng(7)
    for dtypes in [c for c in COMBINATIONS if c[3] != "F64"][::13]:
        inputs, out = dtypes[:3], dtypes[3]
        weights = chance.normal(0, 0.02, 40)
        operands = [bits_of(weights + chance.normal(0, 1e-3, 40), d) for d in inputs]
        got, finite = mix(out, operands, inputs, [1.0])
        assert finite
        for i in range(40):
            values = [decode(int(o[i]), d) for o, d in zip(operands, inputs, strict=True)]
            assert decode(int(got[i]), out) == nearest(exact(values, [1.0]), out), dtypes


@pytest.mark.parametrize("out", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("wide", ["F32", "F64"])
def test_wide_operands_are_rounded_once(wide, out):
    """Subnormals, ties, overflow and all: a single operand that is no zero comes out rounded once.

    Two of the operands are zeros, so that the sum is exact and the plain path has to round it.
    """

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.one_of(patterns(wide), near_ties(wide, out)), min_size=1, max_size=64))
    def check(bits):
        zeros = [0] * len(bits)
        got, _ = mix(out, [bits, zeros, zeros], [wide] * 3, [1.0])
        for number, found in zip(bits, got, strict=True):
            value, result = decode(number, wide), decode(int(found), out)
            if math.isnan(value):
                assert math.isnan(result)
            elif math.isinf(value):
                assert result == value
            else:
                assert result == nearest(Fraction(value), out), value
                assert math.copysign(1, result) == math.copysign(1, value)

    check()


def near_ties(wide, out):
    """Numbers half way between two of the narrower format, and their neighbors."""
    kind = {"F32": np.float32, "F64": np.float64}[wide]

    def between(bits, step):
        value = decode(bits, out)
        if not math.isfinite(value) or value == 0:
            return int(np.array(value, kind).view(BITS[wide]))
        half = float(Fraction(value) + ulp(Fraction(value), out) / 2)
        with np.errstate(over="ignore"):
            return int(np.array(half, kind).view(BITS[wide])) + step

    return st.builds(between, patterns(out), st.sampled_from((-1, 0, 1)))


def bits_of(values, dtype):
    """Floats as bit patterns of a dtype (BF16 by truncation: any value will do)."""
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).tolist()
    kind = {"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]
    return values.astype(kind).view(BITS[dtype]).tolist()


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@pytest.mark.parametrize("deltas", [1, 2])
def test_other_scales_are_within_half_an_ulp(dtype, deltas):
    """At any scale the error is at most 0.51 ulp of the exact value.

    With several Δ that cancel each other, 2^-98 of the largest term comes on top: the accumulators
    hold some 100 bits.
    """

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.tuples(*[patterns(dtype)] * (1 + 2 * deltas)), min_size=1, max_size=32),
        st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=deltas, max_size=deltas),
    )
    def check(rows, scales):
        operands = [list(column) for column in zip(*rows, strict=True)]
        got, _ = mix(dtype, operands, [dtype] * len(operands), scales)
        for row, bits in zip(rows, got, strict=True):
            values = [decode(b, dtype) for b in row]
            total = exact(values, scales)
            value = decode(int(bits), dtype)
            if total is None:
                assert not math.isfinite(value) or 0 in scales
                continue
            largest = max(map(abs, values))
            if math.isinf(nearest(total, dtype)) or largest > 1e290 or 0 < largest < 1e-250:
                continue  # at the edges of float64 itself nothing is wider
            allowed = Fraction(51, 100) * ulp(total, dtype)
            if deltas > 1:
                allowed += Fraction(largest) / 2**98
            assert abs(Fraction(value) - total) <= allowed, row

    check()


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_identities_hold_bit_for_bit(dtype):
    """base = new gives post and post = base gives new, signs of zero included."""

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(*[patterns(dtype)] * 2), min_size=1, max_size=64))
    def check(rows):
        kept = [r for r in rows if all(math.isfinite(decode(b, dtype)) for b in r)]
        if dtype == "F64":  # beyond F64 nothing is wide enough: equal values only
            kept = [r for r in kept if abs(decode(r[0], dtype)) < 1e300 > abs(decode(r[1], dtype))]
        if not kept:
            return
        one, other = ([row[i] for row in kept] for i in (0, 1))
        got, _ = mix(dtype, [other, one, other], [dtype] * 3, [1.0])
        assert got.tolist() == one
        got, _ = mix(dtype, [one, other, other], [dtype] * 3, [1.0])
        assert got.tolist() == one

    check()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_neighbors_make_no_difference(dtype):
    """Alone or in a block that has to be made with care, three numbers give the same bits.

    Alone, most of them are added plainly; a spoiler whose sum is never exact forbids that.
    """
    numbers = (1e9, 1e-9, 0.333) if dtype == "F32" else (3e4, 6.2e-5, 0.333)
    spoiler = [bits_of(np.array([value]), dtype)[0] for value in numbers]
    n, p, b = (array([bits], dtype) for bits in spoiler)
    wide = np.float64(0) if dtype == "F32" else np.float32(0)
    assert not kernels._mix_plainly(n, p, b, n.copy(), wide)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(*[patterns(dtype)] * 3), min_size=1, max_size=24))
    def check(rows):
        together, _ = mix(dtype, [*zip(*rows, spoiler, strict=True)], [dtype] * 3, [1.0])
        for row, bits in zip(rows, together, strict=False):
            alone, finite = mix(dtype, [[number] for number in row], [dtype] * 3, [1.0])
            assert alone[0] == bits or (not finite and math.isnan(decode(int(bits), dtype))), row

    check()


def test_fast_and_general_path_agree():
    """The one-pass kernel and the accumulators give the same bits at scale 1."""
    chance = np.random.default_rng(3)
    new, post, base = (chance.integers(0, 2**16, 30_000, np.uint16) for _ in range(3))
    fast, general = np.empty_like(new), np.empty_like(new)
    kernels.mix_exact(new, post, base, fast, np.float32(0))
    high, low = np.empty(new.size), np.empty(new.size)
    kernels.begin(new, high, low)
    kernels.add(post, base, 1.0, high, low)
    kernels.finish(high, low, general)
    as_floats = [decode_array(a) for a in (new, post, base, fast)]
    usable = np.logical_and.reduce([np.isfinite(a) & (np.abs(a) < 1e38) for a in as_floats])
    usable &= as_floats[3] != 0  # the sign of an exact zero is the fast path's own promise
    assert usable.sum() > 20_000
    assert (fast[usable] == general[usable]).all()


def decode_array(bits):
    """uint16 bfloat16 patterns as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_overflow_on_the_way_is_no_overflow():
    """A difference that float32 cannot hold does not spoil a sum that it can."""
    largest = 0x7F7F
    got, finite = mix("BF16", [[largest], [largest | 0x8000], [largest]], ["BF16"] * 3, [1.0])
    assert finite
    assert decode(int(got[0]), "BF16") == -decode(largest, "BF16")


def test_not_finite_inputs_are_reported():
    """One NaN or infinity in any operand makes the kernel say so."""
    for bad in (0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF):
        for place in range(3):
            operands = [[0x3F80] * 5 for _ in range(3)]
            operands[place][3] = bad
            got, finite = mix("BF16", operands, ["BF16"] * 3, [1.0])
            assert not finite
            assert not math.isfinite(decode(int(got[3]), "BF16"))
            assert decode(int(got[2]), "BF16") == 1.0


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.5])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_infinities(dtype, scale):
    """Equal infinities of post and base cancel, and of the new base and what is subtracted at scale
    ±1. Otherwise infinities add as IEEE 754 says.
    """
    values = [math.inf, -math.inf, 1.5, math.nan]
    rows = [(n, p, b) for n in values for p in values for b in values]
    bits = [list(map(int, bits_of(np.array(column), dtype))) for column in zip(*rows, strict=True)]
    got, finite = mix(dtype, bits, [dtype] * 3, [scale])
    assert not finite
    for row, found in zip(rows, got, strict=True):
        with np.errstate(invalid="ignore"):
            n, p, b = map(np.float64, row)
            expected = n if p == b else n + scale * (p - b)
            if math.isinf(n) and abs(scale) == 1:
                plus, minus = (p, b) if scale == 1 else (b, p)
                expected = plus if n == minus and p != b else expected
        assert np.array_equal(decode(int(found), dtype), expected, equal_nan=True), row
