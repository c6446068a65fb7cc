"""Quantized blocks: exactly the reference's numbers, in any run, in little memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta.formats.gguf.types import TYPES
from paramdelta.formats.gguf.views import GATHERED, MinusOne, Quantized
from paramdelta.formats.view import Rows, Transposed
from tests import ggufs
from tests.views import Store

QUANTIZED = {kind.name: number for number, kind in TYPES.items() if kind.levels}


def view_of(name, shape, seed=0):
    """A view of random blocks, the store that holds them, and their bytes."""
    number = QUANTIZED[name]
    held = ggufs.blocks(number, shape, seed)
    store = Store()
    stored = store.tensor("w", np.frombuffer(held.data, np.uint8), "U8")
    return Quantized("w", "F32", shape, stored, TYPES[number]), store, held.data


@pytest.mark.parametrize("name", QUANTIZED)
def test_numbers_are_the_references(name):
    """Bit for bit those of the gguf package, signs of zero included; NaN where it has NaN."""
    gguf = pytest.importorskip("gguf")
    kind = TYPES[QUANTIZED[name]]
    chance = np.random.default_rng(1)
    blocks = chance.integers(0, 256, (500, kind.size), dtype=np.uint8)
    store = Store()
    stored = store.tensor("w", blocks.reshape(-1), "U8")
    view = Quantized("w", "F32", (500, kind.elements), stored, kind)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(-1)
    found = view.array(0, view.elements, store.fetch)
    same = found.view(np.uint32) == expected.view(np.uint32)
    assert (same | (np.isnan(found) & np.isnan(expected))).all()
    assert same.mean() > 0.9


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K"])
def test_any_run_is_a_part_of_the_whole(name):
    """Runs that begin and end within blocks, one by one and many at once."""
    view, store, _ = view_of(name, (6, 512))
    whole = view.array(0, view.elements, store.fetch)

    @settings(max_examples=80)
    @given(st.data())
    def check(data):
        start = data.draw(st.integers(0, view.elements))
        stop = data.draw(st.integers(start, view.elements))
        assert view.array(start, stop, store.fetch).tobytes() == whole[start:stop].tobytes()
        length = data.draw(st.integers(1, 700))
        starts = data.draw(st.lists(st.integers(0, view.elements - length), min_size=1, max_size=9))
        found = np.empty((len(starts), length), np.float32)
        view.gather(np.array(starts), found.data.cast("B"), store.fetch)
        for run, begin in zip(found, starts, strict=True):
            assert run.tobytes() == whole[begin : begin + length].tobytes()

    check()


def test_picked_rows_and_columns():
    """Rows in any order and transposed blocks, as the planner composes them."""
    view, store, _ = view_of("Q6_K", (8, 256))
    whole = view.array(0, view.elements, store.fetch).reshape(8, 256)
    order = np.array([5, 0, 7, 2, 1, 3, 6, 4], np.int32)
    rows = Rows("w", "F32", (8, 256), (view,), order.tobytes())
    assert np.array_equal(rows.array(0, 2048, store.fetch).reshape(8, 256), whole[order])
    turned = Transposed("w", "F32", (256, 8), view)
    assert np.array_equal(turned.array(0, 2048, store.fetch).reshape(256, 8), whole.T)


def test_reading_takes_little_memory_and_no_byte_twice():
    """A run reads the blocks that it touches; short runs are decoded a part at a time."""
    view, store, data = view_of("Q4_0", (64, 1024))
    assert view.nbytes == len(data)
    view.array(32, 96, store.fetch)
    assert store.reads == [("w", 18, 36)]
    assert view.scratch(1 << 20) < (1 << 20) * 18 // 128 + 3 * GATHERED
    store.reads.clear()
    starts = np.arange(64) * 1024
    view.gather(starts, np.empty((64, 1024), np.float32).data.cast("B"), store.fetch)
    assert sum(count for _, _, count in store.reads) == len(data)


def test_what_it_says_of_itself():
    """Quantized and computed; its identity has the type, its parts are the blocks."""
    view, _, _ = view_of("Q5_K", (2, 256))
    assert view.is_quantized
    assert not view.is_stored
    assert view.identity[-1] == "Q5_K"
    assert view.parts == (view.stored,)


def test_minus_one():
    """Gemma's norms: one is subtracted in float32, in runs and in picked elements."""
    store = Store()
    values = np.array([1.5, 1, 0.25, -3, 1 + 2**-23], np.float32)
    view = MinusOne("n", "F32", (5,), store.tensor("n", values))
    expected = values - np.float32(1)
    assert np.array_equal(view.array(0, 5, store.fetch), expected)
    assert np.array_equal(view.array(1, 3, store.fetch), expected[1:3])
    found = np.empty(3, np.float32)
    view.gather(np.array([4, 0, 2]), found.data.cast("B"), store.fetch)
    assert np.array_equal(found, expected[[4, 0, 2]])
    assert view.identity != view.view.identity
