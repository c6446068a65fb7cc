"""DARE and TIES as they are written: in Python, in YAML, in the lock; and what cannot be meant."""

import numpy as np
import pytest

from paramdelta import Delta, Recipe, UsageError, read_recipe
from paramdelta.sparsity import Dare, Sparsity, Ties

YAML = """\
new_base: n
deltas:
  - {post: p, base: b, scale: 0.5, dare: {drop: 0.9, seed: 7}}
  - {post: q, base: b, density: 0.3}
ties: {scale: 0.7, normalize: false}
"""


def test_yaml_and_python_say_the_same(tmp_path):
    """What is read is what Python would have; what is written is read as the same again."""
    path = tmp_path / "recipe.yaml"
    path.write_text(YAML)
    recipe = read_recipe(path)
    assert recipe == Recipe(
        "n",
        (Delta("p", "b", 0.5, dare={"drop": 0.9, "seed": 7}), Delta("q", "b", density=0.3)),
        ties={"scale": 0.7, "normalize": False},
    )
    assert recipe.ties == Ties(0.2, 0.7, normalize=False)
    path.write_text(recipe.to_yaml())
    assert read_recipe(path) == recipe
    assert recipe.symbols == (
        "Θ = Θ'_base + 0.7·TIES(0.5·DARE0.9(top20%(Θ_post1 − Θ_base1)), top30%(Θ_post2 − Θ_base2))"
    )


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("drop: 0.9", "drop: 1", "line 3: .*drop 1"),
        ("drop: 0.9", "drop: -0.1", "line 3"),
        ("drop: 0.9, ", "", "line 3: drop is missing"),
        ("seed: 7", "seed: 0.5", "line 3: seed is not a number"),
        ("seed: 7", "seeds: 7", "did you mean 'seed'"),
        ("density: 0.3", "density: 0", "line 4: density 0"),
        ("normalize: false", "normalize: maybe", "line 5: normalize"),
        ("scale: 0.7", "density: 2", "line 5: ties: density 2"),
        ("{scale: 0.7, normalize: false}", "yes", "line 5: ties is a mapping"),
    ],
)
def test_mistakes_have_their_line(tmp_path, old, new, what):
    """A share that is none, a missing or unknown key: with the line and what is expected."""
    path = tmp_path / "recipe.yaml"
    path.write_text(YAML.replace(old, new))
    with pytest.raises(UsageError, match=what.split(": ", 1)[-1]) as caught:
        read_recipe(path)
    if what.startswith("line"):
        assert what[:6] in caught.value.where


def test_shares_are_decimal():
    """0.9 is nine tenths: the hash's bound and 1 / (1 − p) are those of the decimal number."""
    sparsity = Sparsity(drop=0.9)
    assert sparsity.cutoff == -(-9 * 2**64 // 10)
    assert sparsity.rescaled(1.0) == 10.0
    assert Sparsity().cutoff == 0
    assert Sparsity().rescaled(0.3) == 0.3


def test_at_least_one_element_is_kept():
    """k is rounded down, as mergekit does, but a tensor never goes altogether."""
    assert Sparsity(density=0.2).kept(99) == 19
    assert Sparsity(density=0.2).kept(3) == 1
    assert Sparsity(density=1.0).kept(7) == 7


def test_every_delta_tensor_and_seed_has_a_mask_of_its_own():
    """The key is of all three; two Δ with the same seed do not lose the same elements."""
    recipe = Recipe("n", tuple(Delta("p", "b", dare=Dare(0.5, seed)) for seed in (0, 0, 1)))
    keys = {recipe.sparsity(number, name, 1.0).key for number in range(3) for name in ("a", "b")}
    assert len(keys) == 6
    assert Recipe("n", (Delta("p", "b"),)).sparsity(0, "a", 1.0) is None


def test_scaling_a_recipe_scales_what_ties_merges():
    """Under TIES the scales of Δ only weigh them, so a sweep's factor goes to λ."""
    recipe = Recipe("n", (Delta("p", "b", 0.5),), ties=Ties())
    assert recipe.times(0.5).ties.scale == 0.5
    assert recipe.times(0.5).deltas == recipe.deltas


def test_numbers_of_numpy_are_numbers():
    """A share from an array is taken for what it is."""
    assert Sparsity(drop=np.float64(0.5)).cutoff == 2**63
