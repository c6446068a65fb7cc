"""TIES: Algorithm 1 of the paper, and its edges."""

import numpy as np
import pytest

from paramdelta import Delta, Recipe, mix
from paramdelta.schemes.ties import Ties
from tests.checkpoints import bf16, save
from tests.schemes.posts import NAME, assert_rounded, delta, deltas64, f32, made


def ties64(torch, values, weights, density: float, lam: float):
    """TIES of the paper (Algorithm 1) for one tensor, each task vector with a weight."""
    k = max(1, int(density * values[0].numel()))
    flat = values.reshape(len(values), -1)
    kth = flat.abs().topk(k, dim=1).values[:, -1:]
    trimmed = torch.where(flat.abs() >= kth, flat, 0.0)
    weighted = trimmed * torch.tensor(weights, dtype=torch.float64)[:, None]
    elected = torch.sign(weighted.sum(0))
    agree = (torch.sign(weighted) == elected) & (weighted != 0)
    total = torch.where(agree, weighted, 0.0).sum(0)
    share = (agree * torch.tensor(weights, dtype=torch.float64)[:, None]).sum(0)
    return lam * torch.where(share > 0, total / share, 0.0).reshape(values.shape[1:])


@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 1.0, 0.375)])
def test_ties_is_the_papers_formula(models, density, weights):
    """Trim, elect, disjoint mean, λ: by Algorithm 1 of the paper, tensor by tensor."""
    torch = pytest.importorskip("torch")
    folder, sets = models
    deltas = tuple(delta(folder, i, w) for i, w in zip((1, 2, 3), weights, strict=True))
    recipe = Recipe(str(folder / "new"), deltas, scheme=Ties(density, 0.8))
    found, _ = made(recipe)
    digits = 8 if sets["base"][NAME].dtype == np.uint16 else 24
    for name, values in deltas64(torch, sets, (1, 2, 3)).items():
        merged = ties64(torch, values, weights, density, 0.8).numpy()
        expected = f32(sets["new"][name]).astype(np.float64) + merged
        assert_rounded(found[name], expected, digits, name)


def test_where_the_signs_weigh_the_same_nobody_is_elected(tmp_path):
    """Θ' stays, whatever normalize says; one sign against none is elected."""

    def one(*values):
        return {"w": np.array(values, np.float32)}

    for name, values in {"base": (0, 0, 0), "a": (1, 1, 0), "b": (-1, 2, -3)}.items():
        save(tmp_path / name, one(*values))
    new = save(tmp_path / "new", one(8, 8, 8))
    deltas = tuple(Delta(str(tmp_path / n), str(tmp_path / "base")) for n in "ab")
    for normalize, expected in ((True, [8, 9.5, 5]), (False, [8, 11, 5])):
        found, _ = made(Recipe(str(new), deltas, scheme=Ties(1.0, normalize=normalize)))
        assert found["w"].tolist() == expected


def test_nan_and_infinity_come_through(tmp_path):
    """They are the largest magnitudes: kept, reported, and in the result; the rest is untouched."""

    def one(*values):
        return {"w": bf16(values)}

    save(tmp_path / "base", one(1, 1, 1, 1))
    save(tmp_path / "a", one(np.inf, np.nan, 2, 1.5))
    save(tmp_path / "b", one(-np.inf, 1, 1, 3))
    deltas = tuple(Delta(str(tmp_path / n), str(tmp_path / "base")) for n in "ab")
    recipe = Recipe(str(save(tmp_path / "new", one(1, 1, 1, 1))), deltas, scheme=Ties(0.5))
    result = mix(recipe, tmp_path / "out")
    assert ("w", "post 1") in result.not_finite
    found, _ = made(recipe)
    np.testing.assert_equal(found["w"], [np.nan, np.nan, 1, 3])


def test_scaling_a_recipe_scales_what_ties_merges():
    """Under TIES the scales of Δ only weigh them, so a sweep's factor goes to λ."""
    recipe = Recipe("n", (Delta("p", "b", 0.5),), scheme=Ties())
    assert recipe.times(0.5).scheme.scale == 0.5
    assert recipe.times(0.5).deltas == recipe.deltas
