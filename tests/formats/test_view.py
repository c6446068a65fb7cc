"""Views: any run of any composition is the same run of the array that it stands for."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta.formats.view import (
    ABSENT,
    Part,
    Rows,
    Transposed,
    Wide,
    Zeros,
    cache_of,
    fetch_from,
    float64,
    rectangles,
)
from paramdelta.storage.reader import Reader
from tests.views import Store


def whole(view, store):
    """All of a view."""
    return view.array(0, view.elements, store.fetch)


def check_runs(view, expected, store):
    """Hypothesis: any run is the run of the expected array."""
    flat = expected.reshape(-1)
    assert view.elements == flat.size

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, flat.size), st.integers(0, flat.size))
    def check(a, b):
        start, stop = min(a, b), max(a, b)
        assert (view.array(start, stop, store.fetch) == flat[start:stop]).all()

    check()


def numbers(*shape, seed=0):
    """float32 numbers that all differ."""
    chance = np.random.default_rng(seed)
    return chance.normal(size=shape).astype(np.float32)


def test_a_stored_tensor_is_one_read():
    """A run of a stored tensor is fetched at once, as it lies."""
    store = Store()
    array = numbers(5, 7)
    tensor = store.tensor("a", array)
    check_runs(tensor, array, store)
    store.reads.clear()
    tensor.array(3, 20, store.fetch)
    assert store.reads == [("a", 3, 17)]


def test_transposed():
    """Axes exchanged, in any run; twice gives the tensor back."""
    store = Store()
    array = numbers(6, 11)
    turned = Transposed("t", "F32", (11, 6), store.tensor("a", array))
    check_runs(turned, array.T, store)
    check_runs(Transposed("tt", "F32", (6, 11), turned), array, store)


def test_part_zeros_wide():
    """A part in a shape of its own; zeros read nothing; wide is float64 without loss."""
    store = Store()
    array = numbers(4, 3, 5)
    tensor = store.tensor("a", array)
    part = Part("p", "F32", (3, 5), tensor, 30)
    check_runs(part, array[2], store)
    assert part.nbytes == 60
    check_runs(Wide("w", "F64", (4, 3, 5), tensor), array.astype(np.float64), store)
    zeros = Zeros("z", "BF16", (3, 3))
    assert (whole(zeros, store) == 0).all()
    assert zeros.parts == ()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_picked_rows(share):
    """Rows picked from two tensors in any order, zeros where none is; runs are read at once."""
    store = Store()
    one, two = numbers(9, 4), numbers(5, 4, seed=1)
    chance = np.random.default_rng(2)
    rows = chance.integers(0, 14, 20).astype(np.int32)
    rows[chance.random(20) < share] = ABSENT
    expected = np.where((rows == ABSENT)[:, None], 0, np.concatenate([one, two])[rows])
    views = (store.tensor("one", one), store.tensor("two", two))
    view = Rows("r", "F32", (20, 4), views, rows.tobytes())
    check_runs(view, expected, store)
    present = int((rows != ABSENT).sum())
    assert view.nbytes == present * 16


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_strewn_rows_are_gathered(share):
    """Many rows that stand alone are one call for each tensor that has some, and no more is read
    than they are; whatever is in between is zeros.
    """
    store = Store()
    one, two = numbers(70, 4), numbers(30, 4, seed=1)
    chance = np.random.default_rng(3)
    rows = chance.permutation(100).astype(np.int32)
    rows[chance.random(100) < share] = ABSENT
    expected = np.where((rows == ABSENT)[:, None], 0, np.concatenate([one, two])[rows])
    views = (store.tensor("one", one), store.tensor("two", two))
    view = Rows("r", "F32", (100, 4), views, rows.tobytes())
    check_runs(view, expected, store)
    calls = []

    def fetch(tensor, starts, into):
        calls.append((tensor.name, isinstance(starts, int)))
        store.fetch(tensor, starts, into)

    store.reads.clear()
    assert (view.array(0, 400, fetch) == expected.reshape(-1)).all()
    assert calls == ([] if share == 1 else [("one", False), ("two", False)])
    assert sum(count for _, _, count in store.reads) == 4 * (rows != ABSENT).sum()
    parts = (Part("p", "F32", (70, 2), views[0], 0), Part("q", "F32", (30, 2), views[1], 0))
    middle = Rows("m", "F32", (100, 2), parts, rows.tobytes())
    halves = np.concatenate([one.reshape(-1)[:140], two.reshape(-1)[:60]]).reshape(100, 2)
    check_runs(middle, np.where((rows == ABSENT)[:, None], 0, halves[rows]), store)


def test_contiguous_rows_are_one_read():
    """An extension of a vocabulary costs one read a slice, as without a map."""
    store = Store()
    tensor = store.tensor("a", numbers(100, 8))
    rows = np.concatenate([np.arange(100), np.full(28, ABSENT)]).astype(np.int32)
    view = Rows("r", "F32", (128, 8), (tensor,), rows.tobytes())
    whole(view, store)
    assert store.reads == [("a", 0, 800)]


def test_joined():
    """Tensors one after the other are one tensor of more axes."""
    store = Store()
    arrays = [numbers(3, 4, seed=seed) for seed in range(5)]
    views = [store.tensor(str(i), array) for i, array in enumerate(arrays)]
    check_runs(Rows.joined("j", (5, 3, 4), views), np.stack(arrays), store)


def test_a_map_costs_four_bytes_a_row():
    """What is kept of a map of 128 256 rows is its int32 numbers."""
    rows = np.random.default_rng(0).permutation(128_256).astype(np.int32)
    store = Store()
    tensor = store.tensor("a", np.zeros((128_256, 1), np.float32))
    view = Rows("r", "F32", (128_256, 1), (tensor,), rows.tobytes())
    assert len(view.rows) == 4 * 128_256


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 9))
def test_rectangles_cover_a_run(a, b, width):
    """At most three rectangles hold each element of the run once, in order."""
    start, stop = min(a, b), max(a, b)
    into = memoryview(bytearray(stop - start))
    found = list(rectangles(start, stop, width, into, 1))
    assert len(found) <= 3
    elements = [r * width + c for rows, columns, _ in found for r in rows for c in columns]
    assert elements == list(range(start, stop))
    assert all(len(t) == len(rows) * len(columns) for rows, columns, t in found)


@given(st.integers(0, 0xFFFF))
def test_float64_of_sixteen_bits(bits):
    """BF16 and F16 patterns become the float64 of the same value."""
    both = np.array([bits], np.uint16)
    wide = float64(both, "BF16")[0]
    half = float64(both.view(np.int16), "F16")[0]
    assert np.array_equal(wide, (both.astype(np.uint32) << 16).view(np.float32)[0], equal_nan=True)
    assert np.array_equal(half, both.view(np.float16)[0], equal_nan=True)


def test_threads_of_a_run_share_their_caches():
    """What a reader's caches hold is projected once: every fetch from it has the same ones."""
    reader, other = Reader(), Reader()
    made = cache_of(fetch_from(reader), "kind", lambda: {"of": "reader"})
    assert cache_of(fetch_from(reader), "kind", dict) is made
    assert cache_of(fetch_from(reader), "another", dict) is not made
    assert cache_of(fetch_from(other), "kind", dict) is not made


def test_a_cache_goes_with_its_reader():
    """Nothing of a finished run stays in memory."""

    class Cache:
        pass

    reader = Reader()
    kept = weakref.ref(cache_of(fetch_from(reader), "kind", Cache))
    gc.collect()
    assert kept() is not None
    del reader
    gc.collect()
    assert kept() is None
