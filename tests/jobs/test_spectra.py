"""Spectra against a whole decomposition, and on constructed subspaces."""

import numpy as np
import pytest

from paramdelta import Delta, Recipe, analyze
from paramdelta.jobs.spectra import RANKS
from tests.checkpoints import save

NAME = "model.layers.0.mlp.up_proj.weight"


def spectrum(tmp_path, delta, shift):
    """The spectrum of one matrix's Δ beside its shift, from three checkpoints."""
    base = np.zeros(delta.shape)
    folders = [
        str(save(tmp_path / role, {NAME: values}))
        for role, values in (("base", base), ("post", base + delta), ("new", base + shift))
    ]
    recipe = Recipe(folders[2], (Delta(folders[1], folders[0]),))
    (tensor,) = analyze(recipe, spectra=True).tensors
    return tensor.spectra[0]


def thin(seed, rows, columns, rank):
    """A random matrix of a rank."""
    chance = np.random.default_rng(seed)
    return chance.normal(size=(rows, rank)) @ chance.normal(size=(rank, columns))


def test_energies_are_those_of_the_whole_decomposition(tmp_path):
    """The share of the energy at every rank, and the stable rank."""
    delta = thin(1, 120, 90, 20) + 0.05 * thin(2, 120, 90, 90)
    found = spectrum(tmp_path, delta, delta)
    values = np.linalg.svd(delta, compute_uv=False) ** 2
    for rank, energy in found.energy:
        assert energy == pytest.approx(values[:rank].sum() / values.sum(), rel=1e-6)
    assert [rank for rank, _ in found.energy] == list(RANKS)
    assert found.stable_rank == pytest.approx(values.sum() / values[0], rel=1e-9)
    assert found.full == 90


def test_a_low_rank_is_seen(tmp_path):
    """A Δ of rank 3 has all of its energy there."""
    found = spectrum(tmp_path, thin(3, 64, 80, 3), thin(4, 64, 80, 64))
    assert dict(found.energy)[4] == pytest.approx(1)
    assert found.rank_of(0.999) == 4
    assert dict(found.energy)[2] < 1 - 1e-6


def test_subspaces(tmp_path):
    """The overlap is 1 for the same subspaces, 0 for orthogonal ones, else as by numpy."""
    one, two = thin(5, 60, 50, 4), thin(6, 60, 50, 4)
    same = spectrum(tmp_path / "same", one, 2 * one).overlap
    assert (same.left, same.right) == (pytest.approx(1), pytest.approx(1))
    apart = np.zeros((60, 50))
    apart[:30, :25], other = one[:30, :25], np.zeros((60, 50))
    other[30:, 25:] = two[30:, 25:]
    apart = spectrum(tmp_path / "apart", apart, other).overlap
    assert (apart.left, apart.right) == (pytest.approx(0), pytest.approx(0))
    full, further = thin(7, 60, 50, 50), thin(8, 60, 50, 50)
    found = spectrum(tmp_path / "any", full, further).overlap
    sides = [np.linalg.svd(x)[0][:, :16] for x in (full, further)]
    expected = np.linalg.norm(sides[0].T @ sides[1]) ** 2 / 16
    assert found.left == pytest.approx(expected, rel=1e-6)
    assert found.chance_left == pytest.approx(16 / 60)


def test_zero_has_no_spectrum(tmp_path):
    """A Δ of zeros has no singular values; a shift of zeros has no directions."""
    zero = np.zeros((8, 8))
    assert spectrum(tmp_path / "shift", thin(9, 8, 8, 8), zero).overlap is None
    with pytest.raises(IndexError):
        spectrum(tmp_path / "delta", zero, thin(9, 8, 8, 8))
