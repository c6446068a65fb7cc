"""DARE: the paper's formula, by a hash that is documented."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import Delta, Recipe, UsageError, plan
from paramdelta.arithmetic import masks
from paramdelta.schemes.dare import Dare, Drop, hash_key
from tests.schemes.posts import MASK, NAME, assert_rounded, delta, deltas64, f32, made, splitmix


def test_hashes_are_those_of_splitmix64():
    """The published outputs for the seed 1234567, and the reference anywhere else."""
    out = np.empty(3, np.uint64)
    masks.hashed(np.uint64(1234567), np.uint64(0), out)
    assert out.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for key in (0, MASK, hash_key(7, 2, NAME)):
        masks.hashed(np.uint64(key), np.uint64(2**40), out)
        assert out.tolist() == [splitmix(key, 2**40 + i) for i in range(3)]


@given(st.integers(0, MASK), st.integers(0, 2**50), st.floats(0, 0.99))
def test_the_reference_drops_the_same_elements(key, start, share):
    """`Drop.keep`, which verify uses, is the documented rule in whole numbers."""
    drop = Drop(share, key)
    kept = drop.keep(np.ones(20), start)
    assert kept.tolist() == [splitmix(key, start + i) >= drop.cutoff for i in range(20)]


def dare64(torch, value, key: int, drop: float):
    """DARE of the paper, (1 − m) ⊙ δ / (1 − p) with m ~ Bernoulli(p); m by its definition."""
    bound = -(-int(drop * 1000) * 2**64 // 1000)
    kept = [splitmix(key, i) >= bound for i in range(value.numel())]
    return torch.tensor(kept, dtype=torch.float64).reshape(value.shape) * value / (1 - drop)


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.9])
def test_dare_is_the_papers_formula(models, drop):
    """Drop by the documented hash, rescale by 1 / (1 − p), scale, add, round once."""
    torch = pytest.importorskip("torch")
    folder, sets = models
    dares = [Dare(drop, 3), Dare(0.5, 4)]
    recipe = Recipe(
        str(folder / "new"),
        (delta(folder, 1, 0.7, dare=dares[0]), delta(folder, 2, -1.5, dare=dares[1])),
    )
    found, _ = made(recipe)
    digits = 8 if sets["base"][NAME].dtype == np.uint16 else 24
    for name, values in deltas64(torch, sets, (1, 2)).items():
        parts = [
            scale * dare64(torch, values[i], hash_key(dares[i].seed, i + 1, name), dares[i].drop)
            for i, scale in enumerate((0.7, -1.5))
        ]
        expected = f32(sets["new"][name]).astype(np.float64) + sum(parts).numpy()
        assert_rounded(found[name], expected, digits, name)


def test_a_mask_has_the_share_that_was_asked_for(models):
    """About p of the elements keep the new base's value."""
    folder, sets = models
    recipe = Recipe(str(folder / "new"), (delta(folder, 1, dare=Dare(0.75)),))
    found, _ = made(recipe)
    same = sum(int((found[n] == f32(t)).sum()) for n, t in sets["new"].items())
    total = sum(t.size for t in sets["new"].values())
    assert 0.72 < same / total < 0.80  # a few change by less than an ulp


def test_shares_are_decimal():
    """0.9 is nine tenths: the hash's bound and 1 / (1 − p) are those of the decimal number."""
    drop = Drop(0.9, 0)
    assert drop.cutoff == -(-9 * 2**64 // 10)
    assert drop.coefficient(1.0) == 10.0
    assert Drop(0.0, 0).cutoff == 0
    assert Drop(0.0, 0).coefficient(0.3) == 0.3
    assert Drop(np.float64(0.5), 0).cutoff == 2**63


def test_every_delta_tensor_and_seed_has_a_mask_of_its_own():
    """The key is of all three; two Δ with the same seed do not lose the same elements."""
    recipe = Recipe("n", tuple(Delta("p", "b", dare=Dare(0.5, seed)) for seed in (0, 0, 1)))
    keys = {
        filter_.key
        for number in range(3)
        for name in ("a", "b")
        for filter_ in recipe.filters(number, name, 1.0)
    }
    assert len(keys) == 6
    assert Recipe("n", (Delta("p", "b"),)).filters(0, "a", 1.0) == ()


def test_base_prime_that_is_the_base_does_not_cancel(models):
    """B + DARE(P − B) is not P: nothing is put together where elements are left out."""
    folder, sets = models
    recipe = Recipe(str(folder / "base"), (delta(folder, 1, dare=Dare(0.5)),))
    planned = plan(recipe)
    assert not any(tensor.reduced for tensor in planned.tensors)
    found, _ = made(recipe)
    assert not np.array_equal(found[NAME], f32(sets["post1"][NAME]))


def test_a_factor_beyond_float64_is_refused():
    """Rescaling must not overflow, whatever the recipe says."""
    with pytest.raises(UsageError, match="too large"):
        Dare(0.5).resolved(1, "w").coefficient(1.7e308)
