"""The randomized decomposition, against the whole one in float64."""

import numpy as np
import pytest
import torch

from paramdelta.arithmetic import kernels
from paramdelta.arithmetic.sketch import Aim, factorise, missed
from paramdelta.dtypes import DTYPES
from paramdelta.formats.view import float64


def blocks_of(matrix, elements=1 << 19):
    """A matrix as `factorise` asks for it, in blocks of whole rows; and how often it was asked."""
    calls = []

    def blocks():
        calls.append(1)
        height = max(1, elements // matrix.shape[1])
        for first in range(0, len(matrix), height):
            yield first, matrix[first : first + height].copy()

    return blocks, calls


def falling(rows, columns, power, seed=0):
    """A matrix whose singular values fall as n^−power."""
    chance = np.random.default_rng(seed)
    count = min(rows, columns)
    left = np.linalg.qr(chance.normal(size=(rows, count)))[0]
    right = np.linalg.qr(chance.normal(size=(columns, count)))[0]
    return (left * np.arange(1, count + 1) ** -power) @ right.T


def kept(matrix, aim):
    """The factors, the share of the energy that they hold, and the best share at this rank."""
    blocks, _ = blocks_of(matrix)
    factors = factorise(blocks, matrix.shape, aim, 7)
    values = torch.linalg.svdvals(torch.from_numpy(matrix)).numpy() ** 2
    share = 1 - missed(blocks, factors.up, factors.down) / factors.energy
    assert factors.energy == pytest.approx((matrix**2).sum(), rel=1e-12)
    return factors, share, values[: factors.up.shape[1]].sum() / values.sum()


@pytest.mark.parametrize("shape", [(300, 120), (120, 300), (200, 200)])
@pytest.mark.parametrize("rank", [1, 8, 32])
@pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
def test_energy_is_within_one_percent_of_the_best(shape, rank, power):
    """On singular values that fall, slowly or fast."""
    factors, share, best = kept(falling(*shape, power), Aim(rank, None, 256))
    assert factors.up.shape == (shape[0], rank)
    assert factors.down.shape == (rank, shape[1])
    assert 0.99 * best <= share <= best + 1e-12


@pytest.mark.parametrize("shape", [(300, 120), (500, 1100)])
def test_error_is_near_the_best_on_noise(shape):
    """Noise has no structure to find; what is missed is still hardly more than must be."""
    matrix = np.random.default_rng(3).normal(size=shape)
    for rank in (4, 16, 64):
        _, share, best = kept(matrix, Aim(rank, None, 256))
        assert 1 - share <= 1.02 * (1 - best)
        assert share >= 0.92 * best


@pytest.mark.parametrize("rank", [3, 5, 40])
def test_a_product_is_recovered(rank):
    """A Δ of rank 3 to float64's precision, also where more is asked for than it has."""
    chance = np.random.default_rng(1)
    matrix = chance.normal(size=(90, 3)) @ chance.normal(size=(3, 70))
    factors, share, _ = kept(matrix, Aim(rank, None, 256))
    assert np.abs(factors.up @ factors.down - matrix).max() < 1e-13 * np.abs(matrix).max() * 90
    assert share == pytest.approx(1, abs=1e-14)


def test_the_rank_is_that_of_the_energy():
    """The least rank that keeps the share, as of the whole decomposition; `most` is the limit."""
    matrix = falling(150, 100, 0.7)
    values = np.linalg.svd(matrix, compute_uv=False) ** 2
    for energy in (0.5, 0.9, 0.95, 0.999):
        wanted = int(np.argmax(np.cumsum(values) >= energy * values.sum())) + 1
        factors, share, _ = kept(matrix, Aim(None, energy, 256))
        assert factors.up.shape[1] == wanted
        assert share >= energy - 1e-9
        limited, _, _ = kept(matrix, Aim(None, energy, 5))
        assert limited.up.shape[1] == min(wanted, 5)


def test_all_of_the_energy_is_all_of_the_rank():
    """1.0 of a product's energy is its rank, give or take a rounding."""
    chance = np.random.default_rng(1)
    matrix = chance.normal(size=(90, 3)) @ chance.normal(size=(3, 70))
    factors, _, _ = kept(matrix, Aim(None, 1.0, 256))
    assert factors.up.shape[1] == 3


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (12, 5)])
def test_more_rank_than_there_is(shape):
    """The rank is capped by the matrix, and then all of it is held."""
    factors, share, _ = kept(falling(*shape, 0.0), Aim(64, None, 256))
    assert factors.up.shape == (shape[0], min(shape))
    assert share == pytest.approx(1, abs=1e-14)


def test_zeros_have_no_factors():
    """One pass is enough to know."""
    blocks, calls = blocks_of(np.zeros((30, 20)))
    assert factorise(blocks, (30, 20), Aim(4, None, 256), 0) is None
    assert len(calls) == 1


@pytest.mark.parametrize("rank", [4, 30])
def test_passes_are_as_many_as_said(rank):
    """The progress total rests on it; where the thin matrices span all, there are only three."""
    matrix = falling(60, 40, 0.5)
    blocks, calls = blocks_of(matrix)
    aim = Aim(rank, None, 256)
    factors = factorise(blocks, matrix.shape, aim, 0)
    missed(blocks, factors.up, factors.down)
    assert len(calls) == aim.passes(matrix.shape) == (3 if rank == 30 else 11)


def test_blocks_hardly_matter():
    """With blocks of other sizes the product is the same but for the rounding of sums."""
    matrix = falling(200, 64, 0.5)
    products = []
    for size in (64, 1000, 1 << 19):
        factors = factorise(blocks_of(matrix, size)[0], matrix.shape, Aim(8, None, 256), 5)
        products.append(factors.up @ factors.down)
    assert np.abs(products[0] - products[2]).max() < 1e-9
    assert np.abs(products[1] - products[2]).max() < 1e-9


@pytest.mark.parametrize(
    "dtypes", [("BF16", "BF16"), ("F16", "BF16"), ("F32", "F16"), ("F64", "F32")]
)
def test_a_difference_is_that_of_float64(dtypes):
    """Every dtype against every other is widened exactly; what is not finite is noticed."""
    chance = np.random.default_rng(0)
    arrays = [
        chance.integers(0, 1 << 14, 50).astype(DTYPES[dtype].numpy)
        if DTYPES[dtype].bits == 16
        else chance.normal(size=50).astype(DTYPES[dtype].numpy)
        for dtype in dtypes
    ]
    out = np.empty(50)
    assert kernels.subtract(*arrays, out)
    wide = [float64(array, dtype) for array, dtype in zip(arrays, dtypes, strict=True)]
    assert out.tolist() == (wide[0] - wide[1]).tolist()
    for bad in (np.inf, -np.inf, np.nan):
        post = np.array([1.0, bad, 2.0])
        assert not kernels.subtract(post, np.zeros(3), np.empty(3))
        with np.errstate(invalid="ignore"):
            assert not kernels.subtract(np.zeros(3), post, np.empty(3))
