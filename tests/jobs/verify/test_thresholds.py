"""Thresholds found again by verify: the definition's, in bounded memory, not the engine's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import Delta, MisfitError, Recipe, api, mix, verify
from paramdelta.jobs.verify import thresholds
from paramdelta.jobs.verify.stored import Stored
from paramdelta.jobs.verify.thresholds import Task, Worker
from paramdelta.schemes.pair import Pair
from paramdelta.schemes.ties import Ties
from paramdelta.schemes.trim import Trim
from paramdelta.storage.reader import Reader
from tests import opening
from tests.checkpoints import encode, save

NUMBERS = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, math.nan])


def found(path, post, base, density, most=1 << 17):
    """The threshold of a Δ by verify."""
    path.write_bytes(encode({"post": post, "base": base}))
    tensors = {tensor.name: tensor for tensor in opening.header(path)}
    pair = Pair(0, tensors["post"], tensors["base"], 1.0, (Trim(density),))
    with Reader() as reader:
        return Worker(Stored(reader), most)(Task(0, pair, post.size))


@pytest.mark.parametrize("few", [1, 7, 1 << 19])
@given(data=st.data())
def test_it_is_the_kth_largest_magnitude(tmp_path_factory, few, data):
    """By sorting; equal numbers, infinities and NaN (the largest of all) included. With room for
    few magnitudes it looks at more of their bits.
    """
    size = data.draw(st.integers(1, 40))
    arrays = [
        np.array(data.draw(st.lists(NUMBERS, min_size=size, max_size=size)), np.float32)
        for _ in range(2)
    ]
    density = data.draw(st.sampled_from([0.01, 0.2, 0.5, 0.99, 1.0]))
    with np.errstate(all="ignore"):
        sizes = np.abs(arrays[0].astype(np.float64) - arrays[1])
    expected = np.sort(sizes)[size - max(1, int(density * size))]
    before, thresholds.FEW = thresholds.FEW, few
    try:
        least = found(tmp_path_factory.mktemp("t") / "f", *arrays, density, most=7)
    finally:
        thresholds.FEW = before
    assert least == expected or (math.isnan(least) and math.isnan(expected))


def test_the_engines_thresholds_are_not_trusted(tmp_path, monkeypatch):
    """A measuring pass that is wrong by one number gives an output that verify refuses."""
    chance = np.random.default_rng(0)
    for role in ("new", "post", "base"):
        save(tmp_path / role, {"w": chance.normal(size=(40, 30))}, config_json={})
    delta = Delta(tmp_path / "post", tmp_path / "base")
    recipe = Recipe(str(tmp_path / "new"), (delta,), scheme=Ties(0.2))
    mix(recipe, tmp_path / "right")
    assert verify(tmp_path / "right", share=1.0).elements == 1200
    kept = Trim.kept
    monkeypatch.setattr(Trim, "kept", lambda self, elements: kept(self, elements) - 1)
    mix(recipe, tmp_path / "wrong")
    monkeypatch.setattr(Trim, "kept", kept)
    with pytest.raises(MisfitError, match="not what its sources give"):
        verify(tmp_path / "wrong", share=1.0)
    assert api.plan(recipe).tensors[0].pairs[0].needs_threshold
