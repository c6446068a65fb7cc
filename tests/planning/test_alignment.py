"""Names are matched where the numbers agree, and not where names and shapes agree by accident."""

import numpy as np
import pytest

from paramdelta import Delta, Recipe, plan
from tests.checkpoints import bf16, llama, moved, save
from tests.planning.test_plan import codes


def bert(seed, head):
    """A tiny encoder with one head: a pooler, or the transform of a masked-word head."""
    chance = np.random.default_rng(seed)

    def weight(*shape):
        return bf16(chance.normal(0, 0.02, shape))

    tensors = {f"bert.layer.{i}.dense.weight": weight(16, 16) for i in range(3)}
    tensors |= {f"{head}.dense.weight": weight(16, 16), f"{head}.dense.bias": weight(16)}
    return tensors


def recipe(tmp_path, base, new, maps=()):
    """Post and base of one class, the new base of another."""
    folders = {
        "base": save(tmp_path / "base", base),
        "post": save(tmp_path / "post", moved(base, 1)),
        "new": save(tmp_path / "new", new),
    }
    deltas = (Delta(str(folders["post"]), str(folders["base"])),)
    return Recipe(str(folders["new"]), deltas, maps=maps)


def test_two_layers_of_equal_size_are_not_one(tmp_path):
    """A pooler is no head, though names and shapes agree: the numbers have nothing in common."""
    base, new = bert(0, "bert.pooler"), bert(0, "cls.predictions.transform")
    new |= {"cls.predictions.transform.dense.weight": bf16(np.eye(16))}
    made = plan(recipe(tmp_path, base, new, maps=("auto",)))
    assert "mapped" not in codes(made)
    assert "map-proposed" not in codes(plan(recipe(tmp_path / "b", base, new)))
    (head,) = (t for t in made.tensors if t.name == "cls.predictions.transform.dense.weight")
    assert not head.mixed


def test_the_same_numbers_under_another_name(tmp_path):
    """One module alone is enough if its numbers agree."""
    base = bert(0, "bert.pooler")
    new = {n.replace("bert.pooler", "head.first"): v for n, v in moved(base, 2).items()}
    made = plan(recipe(tmp_path, base, new, maps=("auto",)))
    assert "mapped" in codes(made)
    assert all(t.mixed for t in made.tensors)


def test_norms_tell_nothing(tmp_path):
    """They are near 1 in every model: one module of norms is not matched."""
    base = llama(layers=1) | {"old.norm.weight": bf16(np.ones(16))}
    new = moved(llama(layers=1), 2) | {"other.norm.weight": bf16(np.ones(16))}
    assert "mapped" not in codes(plan(recipe(tmp_path, base, new, maps=("auto",))))


@pytest.mark.parametrize("same", [True, False])
def test_a_prefix_is_bridged_only_where_the_numbers_agree(tmp_path, same):
    """`dense.weight` beside `pooler.dense.weight`."""
    base = bert(0, "bert.pooler")
    own = {n.removeprefix("bert."): v for n, v in base.items()}
    new = moved(base, 2) if same else bert(7, "bert.pooler")
    made = plan(recipe(tmp_path, own, new))
    assert ("prefix" in codes(made)) is same
