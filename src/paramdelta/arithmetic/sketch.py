"""A randomized singular value decomposition of a matrix that is never held whole.

Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53 (2011): the range
finder with power iterations (algorithm 4.4) and the decomposition in its range (5.1). The matrix is
asked for its rows in blocks, from the first to the last, `Aim.passes` times. Beside a block only
thin matrices are held, (R + C) × (rank + 10).

Blocks follow from the shape alone, and sums go through them in order. So the same machine with the
same libraries makes the same bytes, whatever the memory and the number of threads. Another
processor, or another number of threads of numpy's BLAS, may sum within a block in another order,
and the last bits differ.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Blocks: TypeAlias = Callable[[], Iterable[tuple[int, Array]]]
"""Called for each pass: all rows of a matrix in order, each block with its first row's number."""

OVERSAMPLING = 10  # columns beyond the rank: the paper advises 5 or 10
ITERATIONS = 4  # of the power method: the singular values of a Δ fall slowly (docs/lora.md)
SEED = 20110217


@dataclass(frozen=True)
class Aim:
    """How many singular values to keep: ``rank``, or as few as hold ``energy`` of ‖Δ‖²_F.

    ``most``: the largest rank, where the energy decides.
    """

    rank: int | None
    energy: float | None
    most: int

    def width(self, shape: tuple[int, int]) -> int:
        """Columns of the thin matrices."""
        return min((self.rank or self.most) + OVERSAMPLING, *shape)

    def iterations(self, shape: tuple[int, int]) -> int:
        """Power iterations; none where the thin matrices span everything."""
        return 0 if self.width(shape) == min(shape) else ITERATIONS

    def passes(self, shape: tuple[int, int]) -> int:
        """How often the matrix is read, the last time by `missed`."""
        return 3 + 2 * self.iterations(shape)

    def chosen(self, values: Array, energy: float) -> int:
        """The rank for a matrix with these singular values and this ‖Δ‖²_F."""
        if self.rank is not None:
            return min(self.rank, len(values))
        assert self.energy is not None
        # A hair less than asked, so that rounded sums do not cost a rank more, or all of them.
        reached = np.cumsum(values**2) >= self.energy * energy * (1 - 1e-12)
        needed = int(np.argmax(reached)) + 1 if reached.any() else len(values)
        return min(needed, self.most)


@dataclass(frozen=True)
class Factors:
    """``up @ down`` nears Δ: U·√S (R, r) and √S·Vᵀ (r, C). ``energy``: ‖Δ‖²_F."""

    up: Array
    down: Array
    energy: float


def factorise(blocks: Blocks, shape: tuple[int, int], aim: Aim, seed: int) -> Factors | None:
    """The factors of a matrix (R, C); None for one of zeros."""
    rows, columns = shape
    chance = np.random.default_rng([SEED, seed])
    thin = chance.standard_normal((columns, aim.width(shape)))
    energy = 0.0
    found = np.empty((rows, thin.shape[1]))
    for first, block in blocks():
        np.matmul(block, thin, out=found[first : first + len(block)])
        energy += float(np.vdot(block, block))
    del thin
    if energy == 0:
        return None
    span = _basis(found)
    for _ in range(aim.iterations(shape)):
        thin = _basis(_across(blocks, span, columns).T)
        for first, block in blocks():
            np.matmul(block, thin, out=found[first : first + len(block)])
        del thin
        span = _basis(found)
    del found
    # Δ ≈ span · (spanᵀ Δ), and what is in brackets is small enough for a plain decomposition.
    right, small = np.linalg.qr(_across(blocks, span, columns).T)
    u, values, vt = np.linalg.svd(small.T)
    rank = aim.chosen(values, energy)
    root = np.sqrt(values[:rank])
    return Factors(span @ (u[:, :rank] * root), (root[:, None] * vt[:rank]) @ right.T, energy)


def missed(blocks: Blocks, up: Array, down: Array) -> float:
    """‖Δ − up @ down‖²_F, in one pass: what a pair of factors does not hold."""
    total = 0.0
    for first, block in blocks():
        block -= up[first : first + len(block)] @ down
        total += float(np.vdot(block, block))
    return total


def _basis(thin: Array) -> Array:
    """Orthonormal columns that span those of a thin matrix."""
    return np.linalg.qr(thin)[0]


def _across(blocks: Blocks, span: Array, columns: int) -> Array:
    """``spanᵀ Δ`` (k, C)."""
    total = np.zeros((span.shape[1], columns))
    part = np.empty_like(total)
    for first, block in blocks():
        total += np.matmul(span[first : first + len(block)].T, block, out=part)
    return total


def held(shape: tuple[int, int], width: int) -> int:
    """Bytes that `factorise` and `missed` hold at the most, beside a block."""
    rows, columns = shape
    # Basis and product of the rows' side, two of the columns', and the copies of one basis.
    return 8 * width * (2 * rows + 2 * columns + 2 * max(rows, columns) + 4 * width)
