"""Layers of a new base that are other layers of base."""

import numpy as np
import pytest

from paramdelta import Recipe, Severity, plan
from tests.checkpoints import llama, moved
from tests.planning.test_plan import codes, three


def deeper(tensors, order):
    """A model whose layer k is layer ``order[k]`` of another."""
    made = {n: v for n, v in tensors.items() if ".layers." not in n}
    for number, old in enumerate(order):
        stem = f"model.layers.{old}."
        made |= {
            n.replace(stem, f"model.layers.{number}.", 1): v
            for n, v in tensors.items()
            if n.startswith(stem)
        }
    return made


@pytest.mark.parametrize(
    ("order", "wrong"),
    [
        ([0, 1, 2, 1, 2, 3], {3}),
        ([0, 1, 1, 2, 3, 3], {2, 3}),
        ([3, 2, 1, 0], {0, 1, 2, 3}),
        ([0, 2, 3], {1, 2}),
    ],
)
def test_layers_that_moved(tmp_path, order, wrong):
    """Depth-upscaled, interleaved, reversed, pruned: the first moved layer is named."""
    base = llama(layers=4)
    made = plan(three(tmp_path, base=base, new=deeper(moved(base, 2), order)))
    found = next(f for f in made.findings if f.code == "layers-moved")
    assert found.severity is Severity.REFUSED
    assert {int(name.split(".")[2]) for name in found.tensors} == wrong
    first = min(wrong)
    assert f"layer {first} of model.layers.* is layer {order[first]} of" in found.what


def test_further_layers_behind_the_old_ones(tmp_path):
    """Layers that are new, or copies at the end, are no refusal: the old ones are in place."""
    base = llama(layers=4)
    made = plan(three(tmp_path, base=base, new=deeper(moved(base, 2), [0, 1, 2, 3, 3])))
    assert codes(made) == {"only-in-new-base": Severity.WARNING}


def test_layers_of_different_widths(tmp_path):
    """Stages of a backbone can be numbered as layers are, and have other shapes each."""
    rng = np.random.default_rng(0)
    base = {
        f"stages.layers.{number}.up.weight": rng.standard_normal((width, 8)).astype(np.float32)
        for number, width in enumerate((16, 32, 32, 16))
    }
    new = deeper_stages(base)
    made = plan(three(tmp_path, base=base, new=new))
    found = next(f for f in made.findings if f.code == "layers-moved")
    assert {int(name.split(".")[2]) for name in found.tensors} == {1, 2}


def deeper_stages(base):
    """The same stages with the second and the third exchanged, and the others drawn anew."""
    rng = np.random.default_rng(1)
    stem = "stages.layers.{}.up.weight"
    new = {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in base.items()}
    return new | {stem.format(1): base[stem.format(2)], stem.format(2): base[stem.format(1)]}


def test_layers_of_zeros(tmp_path):
    """They are like nothing; no NaN, no refusal."""
    base = llama(layers=2)
    new = moved(base, 2)
    new = {n: np.zeros_like(v) if ".layers.1." in n else v for n, v in new.items()}
    assert "layers-moved" not in codes(plan(three(tmp_path, base=base, new=new)))


def test_it_can_be_allowed(tmp_path):
    """By its code."""
    base = llama(layers=2)
    recipe = three(tmp_path, base=base, new=deeper(moved(base, 2), [1, 0]))
    allowed = Recipe(recipe.new_base, recipe.deltas, allow=("layers-moved",))
    assert codes(plan(allowed))["layers-moved"] is Severity.WARNING
