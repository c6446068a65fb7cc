"""Axes in another order: any run is the same run of numpy's and torch's own transposition."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.formats.permuted import Permuted, boxes
from tests.views import Store

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=5)


@st.composite
def permuted(draw):
    """A stored array, an order of its axes, and a run of its elements."""
    shape = draw(SHAPES)
    axes = tuple(draw(st.permutations(range(len(shape)))))
    count = int(np.prod(shape))
    ends = sorted(draw(st.tuples(st.integers(0, count), st.integers(0, count))))
    return np.arange(count, dtype=np.float32).reshape(shape), axes, *ends


@given(permuted())
def test_any_run_is_numpys(case):
    """Every run of every order of axes, against numpy.transpose."""
    array, axes, start, stop = case
    store = Store()
    stored = store.tensor("a", array)
    expected = array.transpose(axes)
    view = Permuted("a", "F32", expected.shape, stored, axes)
    assert (view.array(start, stop, store.fetch) == expected.reshape(-1)[start:stop]).all()


@given(st.lists(st.integers(1, 4), max_size=5), st.data())
def test_boxes_cover_a_run_in_order(shape, data):
    """Laid end to end, the boxes are the run; there are at most 2n − 1 of them."""
    count = int(np.prod(shape, dtype=int))
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    found = list(boxes(start, stop, shape))
    numbers = np.arange(count).reshape(shape)
    covered = [n for box in found for n in numbers[np.ix_(*box)].reshape(-1).tolist()]
    assert covered == list(range(start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)


def test_channels_last_is_as_in_torch():
    """A channels_last convolution, read whole and by output channels, in few and long reads."""
    torch = pytest.importorskip("torch")
    weight = torch.randn(4, 8, 3, 3).to(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    store = Store()
    stored = store.tensor("a", weight.permute(0, 2, 3, 1).numpy())
    view = Permuted("a", "F32", (4, 8, 3, 3), stored, (0, 3, 1, 2))
    expected = weight.contiguous().reshape(-1).numpy()
    assert (view.array(0, 288, store.fetch) == expected).all()
    assert store.reads == [("a", 0, 288)]
    store.reads.clear()
    assert (view.array(72, 144, store.fetch) == expected[72:144]).all()
    assert store.reads == [("a", 72, 72)]


def test_no_numbers():
    """An empty run reads nothing, and a scalar is one box."""
    assert list(boxes(3, 3, (2, 3))) == []
    assert list(boxes(0, 1, ())) == [[]]


def test_identity_tells_orders_apart():
    """Two orders of axes of one tensor are different operands."""
    stored = Store().tensor("a", np.zeros((2, 2, 2), np.float32))
    found = {
        str(Permuted("a", "F32", (2, 2, 2), stored, axes).identity)
        for axes in itertools.permutations(range(3))
    }
    assert len(found) == 6
