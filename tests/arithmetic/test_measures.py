"""The sums of an analysis against numpy in float64, and against the mix itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.arithmetic.measures import BLOCK, NONE, ROW, Rounding, Vectors, empty, measure
from paramdelta.dtypes import DTYPES
from paramdelta.formats.view import float64
from paramdelta.schemes.pair import Pair
from paramdelta.schemes.sum import SUM
from tests.checkpoints import bf16
from tests.numbers import array, patterns

# base, new base, Δ and shift of the operands new base, post, base
VECTORS = Vectors(
    4,
    np.array([[0, 2, NONE, 1], [1, 0, NONE, 1], [2, 1, ROW - 0, 1], [3, ROW - 1, ROW - 0, 1]]),
    np.array([[2, 3], [0, 0], [1, 1], [2, 2], [3, 3], [0, 1]]),
    1,
    np.array([2]),
    np.array([1]),
    np.array([1.0]),
)
PLAIN = Rounding(True, 45, 2.0**-126, 1.5 * 2.0 ** (52 - 133))


def measured(operands, cuts=(), block=BLOCK, vectors=VECTORS, rounding=PLAIN, inner=None, count=1):
    """The sums of all elements, in calls that end at ``cuts``."""
    size = operands.shape[1]
    sums = empty(count, vectors)
    scratch, places = np.empty((vectors.height, BLOCK)), np.empty(BLOCK, np.uint32)
    for start, stop in zip((0, *cuts), (*cuts, size), strict=True):
        part = np.ascontiguousarray(operands[:, start:stop])
        measure(
            part, stop - start, block, inner or size, count, start, 0,
            vectors, rounding, sums, scratch, places,
        )  # fmt: skip
    return sums


def noise(seed, size, *widths):
    """Normal numbers around those before, a row for each width."""
    chance = np.random.default_rng(seed)
    return np.cumsum([chance.normal(0, width, size) for width in widths], axis=0)


def lineage(seed, size):
    """New base, post and base, as float64."""
    base, post = noise(seed, size, 0.02, 0.0005)
    return np.stack([base + noise(seed + 1, size, 0.001)[0], post, base])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_sums_are_those_of_numpy(dtype):
    """Products, fourth powers, counts, signs and the largest element, from every dtype."""
    values = lineage(3, 50_001)
    stored = {
        "BF16": bf16, "F16": lambda v: v.astype(np.float16).view(np.int16),
        "F32": lambda v: v.astype(np.float32), "F64": lambda v: v,
    }[dtype](values)  # fmt: skip
    new, post, base = float64(stored.reshape(-1), dtype).reshape(values.shape)
    delta, shift = post - base, new - base
    sums = measured(stored)
    expected = [delta @ shift, base @ base, new @ new, delta @ delta, shift @ shift, base @ new]
    np.testing.assert_allclose((sums.high + sums.low)[0], expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(sums.fourth.sum(), (delta**4).sum(), rtol=1e-13)
    assert sums.zero[0] == (delta == 0).sum()
    both = (delta != 0) & (shift != 0)
    assert sums.both[0] == both.sum()
    assert sums.same[0] == (np.sign(delta) == np.sign(shift))[both].sum()
    assert sums.top.view(np.float64)[0] == abs(delta).max()
    places = abs(delta).astype(np.float32).view(np.uint32) >> 19
    assert (sums.histogram[0] == np.bincount(places, minlength=4096)).all()


def test_the_cut_into_calls_does_not_matter():
    """Calls of any number of whole blocks give the same bits."""
    operands = bf16(lineage(5, 20_000))
    whole = measured(operands)
    for cuts in ((BLOCK,), (3 * BLOCK, 4 * BLOCK, 17 * BLOCK)):
        for one, two in zip(whole, measured(operands, cuts), strict=True):
            assert one.tobytes() == two.tobytes()


def test_sums_do_not_drift():
    """A sum of 3 · 10⁶ squares that are not exact has the error of one rounding."""
    operands = np.full((3, 3_000_000), np.float32(0.1))
    operands[2] = 0
    sums = measured(operands)
    exact = 3_000_000 * float(np.float32(0.1)) ** 2
    assert sums.high[0, 2] + sums.low[0, 2] == pytest.approx(exact, rel=3e-16)


@given(
    st.sampled_from(["BF16", "F16", "F32"]).flatmap(
        lambda name: st.tuples(
            st.just(name), st.lists(st.tuples(*[patterns(name)] * 3), min_size=1)
        )
    )
)
def test_what_is_lost_is_what_the_mix_loses(case):
    """An element counts as lost if the mix gives the new base's own number although Δ is not 0.

    Where float64 can hold the Δ.
    """
    name, rows = case
    operands = np.stack([array([row[i] for row in rows], name) for i in range(3)])
    new, post, base = float64(operands.reshape(-1), name).reshape(operands.shape)
    with np.errstate(all="ignore"):
        delta = post - base
        usable = np.isfinite(new) & (post - delta == base) & (delta + base == post)
    operands, new, post, base = operands[:, usable], new[usable], post[usable], base[usable]
    if not usable.any():
        return
    out = np.empty_like(operands[0])
    scratch = np.empty((6, 1 << 14))
    SUM.combine((Pair(0, None, None, 1.0),), operands, 0, out, name, scratch)
    result = float64(out, name)
    expected = (result == new) & (post != base)
    least, quantum = (2.0**-14, 2.0**-24) if name == "F16" else (2.0**-126, 0.0)
    quantum = quantum or {"BF16": 2.0**-133, "F32": 2.0**-149}[name]
    rounding = Rounding(True, 53 - DTYPES[name].digits, least, 1.5 * quantum * 2.0**52)
    assert measured(operands, rounding=rounding).lost[0] == expected.sum()


def test_segments_have_sums_of_their_own():
    """Rows and columns of a matrix, as the heads of an attention have them."""
    operands = lineage(9, 24 * 30)
    _, post, base = operands.reshape(3, 24, 30)
    squares = (post - base) ** 2
    rows = measured(operands, block=30 * 4, inner=30 * 8, count=3)
    np.testing.assert_allclose(rows.high[:, 3], squares.reshape(3, -1).sum(axis=1), rtol=1e-12)
    columns = measured(operands, cuts=(10 * 30,), block=10, inner=10, count=3)
    expected = squares.reshape(24, 3, 10).sum(axis=(0, 2))
    np.testing.assert_allclose(columns.high[:, 3], expected, rtol=1e-12)


def test_what_is_not_finite_is_counted_and_left_out():
    """An element at which any operand is infinite or NaN counts as zero in every vector."""
    operands = lineage(11, 5000)
    whole = operands.copy()
    operands[0, 7], operands[1, 8], operands[2, 4000] = np.inf, np.nan, -np.inf
    whole[:, [7, 8, 4000]] = 0
    sums, expected = measured(operands), measured(whole)
    assert sums.broken[0] == 3
    for name in set(sums._fields) - {"broken"}:
        assert (getattr(sums, name) == getattr(expected, name)).all(), name
