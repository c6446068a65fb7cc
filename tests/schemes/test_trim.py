"""Trimming: how many elements are kept, and which."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.schemes.trim import Trim


def test_at_least_one_element_is_kept():
    """k is rounded down, as mergekit does, but a tensor never goes altogether."""
    assert Trim(0.2).kept(99) == 19
    assert Trim(0.2).kept(3) == 1
    assert Trim(1.0).kept(7) == 7
    assert Trim(0.2).kept(0) == 0


@given(st.lists(st.floats(), min_size=1), st.floats(0.01, 1))
def test_the_largest_magnitudes_are_kept(values, density):
    """With the least magnitude that counts: all at or above it, NaN too, and nothing else."""
    difference = np.array(values)
    trim = Trim(density)
    with np.errstate(invalid="ignore"):
        size = np.sort(np.abs(difference))  # NaN is the largest
    threshold = float(size[-trim.kept(len(values))])
    kept = trim.with_threshold(threshold).keep(difference, 0)
    assert kept.sum() >= trim.kept(len(values))
    for value, stays in zip(values, kept, strict=True):
        assert stays == (np.isnan(value) or np.isnan(threshold) or abs(value) >= threshold)


def test_without_a_threshold_nothing_can_be_kept():
    """The measuring pass has to come first."""
    with pytest.raises(AssertionError):
        Trim(0.5).keep(np.ones(3), 0)
