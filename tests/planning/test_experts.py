"""Layouts of experts: every one into every other is the same numbers."""

import itertools

import numpy as np
import pytest

from paramdelta.planning.experts import relaid
from tests.views import Store

EXPERTS, INNER, HIDDEN = 3, 5, 4
STEM = "model.layers.0.{}.experts"


def layout(kind, store, tag):
    """The same experts in one layout: as stored tensors, and as arrays."""
    chance = np.random.default_rng(0)
    gate, up = (chance.normal(size=(EXPERTS, INNER, HIDDEN)).astype(np.float32) for _ in range(2))
    down = chance.normal(size=(EXPERTS, HIDDEN, INNER)).astype(np.float32)
    block = "block_sparse_moe" if kind == "mixtral" else "mlp"
    stem = STEM.format(block)
    names = {"mixtral": ("w1", "w3", "w2"), "one": ("gate_proj", "up_proj", "down_proj")}
    arrays = {f"model.layers.0.{block}.gate.weight": np.ones((EXPERTS, HIDDEN), np.float32)}
    if kind in names:
        for number, (name, part) in itertools.product(
            range(EXPERTS), zip(names[kind], (gate, up, down), strict=True)
        ):
            arrays[f"{stem}.{number}.{name}.weight"] = part[number]
    else:
        joined = np.concatenate([gate, up], axis=1)
        turned = kind == "turned"
        arrays[f"{stem}.gate_up_proj"] = joined.transpose(0, 2, 1) if turned else joined
        arrays[f"{stem}.down_proj"] = down.transpose(0, 2, 1) if turned else down
    return {
        name: store.tensor(tag + name, np.ascontiguousarray(array))
        for name, array in arrays.items()
    }, arrays


KINDS = ("mixtral", "one", "joined", "turned")


@pytest.mark.parametrize(("have", "want"), list(itertools.permutations(KINDS, 2)))
def test_every_layout_into_every_other(have, want):
    """Names, shapes and numbers are those of the other layout, the router's too, in any run."""
    store = Store()
    own, _ = layout(have, store, "own ")
    target, arrays = layout(want, store, "target ")
    found, changed = relaid(own, target)
    assert changed
    assert found.keys() == target.keys()
    for name, view in found.items():
        expected = arrays[name].reshape(-1)
        assert view.shape == arrays[name].shape
        for start, stop in ((0, expected.size), (1, expected.size - 2), (7, 11)):
            assert (view.array(start, stop, store.fetch) == expected[start:stop]).all(), name


def test_equal_layouts_are_left_alone():
    """Nothing is done where names agree, or where the target has no experts."""
    store = Store()
    own, _ = layout("one", store, "")
    assert relaid(own, own) == (own, False)
    assert relaid(own, {"lm_head.weight": own[next(iter(own))]}) == (own, False)


def test_what_does_not_fit_stays():
    """A missing expert, another number of them or another size is left for the findings to say."""
    store = Store()
    own, _ = layout("one", store, "own ")
    target, _ = layout("joined", store, "target ")
    without = {name: view for name, view in own.items() if ".1." not in name}
    assert relaid(without, target)[1] is False
    stem = STEM.format("mlp")
    fewer = {name: view for name, view in own.items() if ".2." not in name}
    assert relaid(fewer, target)[1] is False
    odd = dict(own)
    odd[f"{stem}.0.up_proj.weight"] = store.tensor("odd", np.ones((2, 2), np.float32))
    assert relaid(odd, target)[1] is False


def test_gate_and_up_in_turns_are_left_alone():
    """gpt-oss joins gate and up in turns: cut in halves, they would be wrong without a word."""
    store = Store()
    own, _ = layout("one", store, "own ")
    target, _ = layout("turned", store, "target ")
    bias = f"{STEM.format('mlp')}.gate_up_proj_bias"
    target[bias] = store.tensor(bias, np.ones((EXPERTS, 2 * INNER), np.float32))
    assert relaid(own, target) == (own, False)
