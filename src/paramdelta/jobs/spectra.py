"""Spectra: how much of each weight's Δ its leading singular values hold, and where they lie beside
those of the shift. A pass of its own, which reads each matrix several times.

`arithmetic.sketch` is the decomposition. Only matrices of layers have spectra, not embeddings.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.arithmetic.sketch import Aim, Factors, factorise, held
from paramdelta.engine.memory import Need
from paramdelta.errors import CheckpointError
from paramdelta.formats.view import Fetch, Zeros, fetch_from
from paramdelta.jobs.analyze import Subject
from paramdelta.jobs.lowrank import block_held, difference
from paramdelta.schemes.pair import Pair
from paramdelta.storage.reader import Reader

RANK = 64  # singular values that are found
RANKS = (1, 2, 4, 8, 16, 32, 64)  # at which the energy is told
LEADING = 16  # directions of which the overlap is told
_LEFT_OUT = ("embedding", "head", "norm", "bias")


@dataclass(frozen=True)
class Overlap:
    """How much the leading ``rank`` directions of Δ and S share: 0 for orthogonal subspaces, 1 for
    the same; on the side of the outputs (``left``) and of the inputs. ``chance``: of random ones.
    """

    rank: int
    left: float
    right: float
    chance_left: float
    chance_right: float


@dataclass(frozen=True)
class Spectrum:
    """The leading singular values of a Δ in one weight of rank ``full``.

    ``energy``: by rank, the share of ‖Δ‖² in the leading singular values. ``stable_rank``: ‖Δ‖² /
    σ₁². ``overlap``: with S; None where S is not known or zero.
    """

    delta: int
    full: int
    energy: tuple[tuple[int, float], ...]
    stable_rank: float
    overlap: Overlap | None

    def rank_of(self, share: float) -> int | None:
        """The smallest of `RANKS` that holds a share of the energy; None if none does."""
        return next((rank for rank, energy in self.energy if energy >= share), None)


@dataclass(frozen=True)
class Task:
    """One Δ in one weight. ``subject``: its number. ``triple``: which of its Δs."""

    subject: int
    triple: int


class SpectraJob:
    """Finds the spectra of all matrices. ``found``: by name of the tensor."""

    lead = 8

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.subjects = [one for one in subjects if _has_spectrum(one)]
        self.found: dict[str, list[Spectrum]] = {}

    def tasks(self) -> Sequence[Task]:
        """See `Job.tasks`."""
        return [
            Task(number, at)
            for number, one in enumerate(self.subjects)
            for at in range(len(one.triples))
        ]

    def cost(self, task: Task) -> int:
        """Bytes of all passes."""
        one = self.subjects[task.subject]
        passes = _AIM.passes(_shape(one)) - 1
        matrices = 2 if one.triples[task.triple].shift >= 0 else 1
        return 2 * one.elements * one.views[0].kind.size * passes * matrices

    def need(self, buffer: int) -> Need:
        """What a run holds; the size of buffers does not matter."""
        each = 0
        for one in self.subjects:
            shape = _shape(one)
            kept = 2 * 8 * sum(shape) * RANK
            block = block_held(one.views, shape[1])
            each = max(each, held(shape, _AIM.width(shape)) + kept + block)
        views = [view for one in self.subjects for view in one.views]
        return Need(each, sum({k: s for v in views for k, s in v.caches.items()}.values()))

    def worker(self, reader: Reader, writers: Sequence[Any]) -> Callable[[Task], Spectrum | None]:
        """See `Job.worker`."""
        return partial(self._run, fetch_from(reader))

    def collect(self, task: Task, receipt: Spectrum | None) -> None:
        """Keep a spectrum."""
        if receipt is not None:
            self.found.setdefault(self.subjects[task.subject].name, []).append(receipt)

    def _run(self, fetch: Fetch, task: Task) -> Spectrum | None:
        one = self.subjects[task.subject]
        triple = one.triples[task.triple]
        try:
            delta = _factors(one, triple.delta, fetch)
            shift = _factors(one, triple.shift, fetch) if triple.shift >= 0 else None
        except CheckpointError as error:
            if error.code != "delta-not-finite":
                raise
            return None
        if delta is None:
            return None
        values = np.square(delta.up).sum(axis=0)  # the columns of U·√S
        shares = np.cumsum(values**2) / delta.energy
        ranks = [rank for rank in RANKS if rank <= len(values)]
        return Spectrum(
            triple.number,
            min(_shape(one)),
            tuple((rank, min(1.0, float(shares[rank - 1]))) for rank in ranks),
            float(delta.energy / values[0] ** 2),
            _overlap(delta, shift) if shift is not None else None,
        )


_AIM = Aim(RANK, None, RANK)


def _shape(one: Subject) -> tuple[int, int]:
    rows, columns = one.shape
    return rows, columns


def _has_spectrum(one: Subject) -> bool:
    single = np.bincount(one.rows.terms[:, 0]).max() == 1  # no adapter that also replaces
    return len(one.shape) == 2 and min(one.shape) > 1 and single and one.kind not in _LEFT_OUT


def _factors(one: Subject, row: int, fetch: Fetch) -> Factors | None:
    """The factors of one row of a subject as a matrix; None if it is zero."""
    post, base = one.operands(row)
    base = base or Zeros("zeros", post.dtype, post.shape)
    shape = _shape(one)
    blocks = partial(difference, Pair(0, post, base, 1.0), shape[1], fetch, one.name)
    seed = int.from_bytes(hashlib.sha256(one.name.encode()).digest()[:8], "little")
    return factorise(blocks, shape, _AIM, seed)


def _overlap(delta: Factors, shift: Factors) -> Overlap:
    most = min(LEADING, _rank(delta), _rank(shift))
    left = _common(delta.up[:, :most], shift.up[:, :most])
    right = _common(delta.down[:most].T, shift.down[:most].T)
    rows, columns = len(delta.up), delta.down.shape[1]
    return Overlap(most, left, right, most / rows, most / columns)


def _rank(factors: Factors) -> int:
    """How many singular values are more than rounding."""
    values = np.square(factors.up).sum(axis=0)
    return int((values > 1e-6 * values[0]).sum())


def _common(one: npt.NDArray[np.float64], two: npt.NDArray[np.float64]) -> float:
    """The mean squared cosine between the subspaces of two matrices' orthogonal columns."""
    product = _unit(one).T @ _unit(two)
    return float(min(1.0, np.square(product).sum() / one.shape[1]))


def _unit(columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    norms = np.sqrt(np.square(columns).sum(axis=0))
    return columns / np.where(norms > 0, norms, math.inf)
