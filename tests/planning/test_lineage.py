"""How like two checkpoints are, on a sample of their weights."""

import warnings

import numpy as np
import pytest

from paramdelta.planning.lineage import likeness, read_samples
from tests.views import Store


@pytest.mark.parametrize("huge", [1e200, 1e300])
def test_numbers_too_large_to_compare(huge):
    """Their squares overflow: there is no likeness, no NaN and no warning."""
    store = Store()
    views = {"w": store.tensor("w", np.full((4, 4), huge))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert likeness(*[read_samples(["w"], views, store.fetch)] * 2) is None


def test_the_same_and_the_opposite():
    """Cosine 1 and −1; the distance is relative to the first."""
    store = Store()
    one = {"w": store.tensor("w", np.eye(4))}
    other = {"w": store.tensor("v", -np.eye(4))}
    same = likeness(*[read_samples(["w"], one, store.fetch)] * 2)
    assert (same.cosine, same.distance) == (1, 0)
    opposite = likeness(
        read_samples(["w"], one, store.fetch), read_samples(["w"], other, store.fetch)
    )
    assert (opposite.cosine, opposite.distance) == (-1, 2)
    assert likeness({}, {}) is None
