"""The least magnitude that TIES keeps: exact, whatever the sizes of buffers and digits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.engine import thresholds
from paramdelta.engine.slices import Budget
from paramdelta.planning.plan import OutputTensor, Pair
from paramdelta.sparsity import Sparsity
from tests.numbers import array, patterns
from tests.views import Store


def threshold(store: Store, post, base, density: float, buffer: int, names: str = "BF16"):
    """What the search finds for ``post − base``."""
    one, other = store.tensor("post", post, names), store.tensor("base", base, names)
    pair = Pair(0, one, other, 1.0, Sparsity(density=density))
    tensor = OutputTensor("t", names, one.shape, other, (pair,))
    return thresholds._Search(Budget(1, 3, buffer), store).threshold(tensor, pair)


@given(
    st.sampled_from(["BF16", "F16", "F32", "F64"]).flatmap(
        lambda name: st.tuples(
            st.just(name), st.lists(st.tuples(patterns(name), patterns(name)), min_size=1)
        )
    ),
    st.floats(0.001, 1),
    st.sampled_from([8, 24, 4096]),
    st.sampled_from([(1, 1), (3, 2), (20, 4), (20, 1 << 17)]),
)
def test_radix_select_is_a_partition(case, density, buffer, sizes):
    """The k-th largest |Δ| is numpy's, infinities and NaN as the largest."""
    name, pairs = case
    post, base = (array([pair[i] for pair in pairs], name) for i in (0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds, "DIGIT", sizes[0])
        patch.setattr(thresholds, "FOUND", sizes[1])
        found = threshold(Store(), post, base, density, buffer, name)
    with np.errstate(all="ignore"):
        values = [_wide(a, name) for a in (post, base)]
        size = np.sort(np.abs(values[0] - values[1]))
    kept = min(len(size), max(1, int(density * len(size))))
    np.testing.assert_equal(found, size[len(size) - kept])


def _wide(stored, name):
    if name == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return (stored.view(np.float16) if name == "F16" else stored).astype(np.float64)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_two_passes_are_enough(dtype, monkeypatch):
    """Of weights as they are, the first pass finds the bucket and the second the number in it: in
    float32 few are left, in bfloat16 they have no further bits.
    """
    monkeypatch.setattr(thresholds, "FOUND", 4 if dtype == np.uint16 else 1 << 10)
    chance = np.random.default_rng(0)
    base = chance.normal(0, 0.02, (400, 500)).astype(np.float32)
    post = base + chance.normal(0, 0.002, base.shape).astype(np.float32)
    if dtype == np.uint16:
        base, post = ((a.view(np.uint32) >> 16).astype(np.uint16) for a in (base, post))
    store = Store()
    name = "BF16" if dtype == np.uint16 else "F32"
    threshold(store, post, base, 0.2, 1 << 16, name)
    assert sum(count for _, _, count in store.reads) == 2 * 2 * base.size
