"""Tallies: what can be added up of Δs, tensor by tensor, so that any group of tensors has it."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.arithmetic.measures import BUCKETS, FINE

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

BOUND = 2.0 ** -(FINE + 1)
"""The relative error of a quantile, at the most."""


@dataclass
class Tally:
    """Sums over the elements of some tensors; D is how many Δs the recipe has.

    S is the shift, new base − base. ``tensors``, ``elements``: int64 (D,), with a Δ; ``shifted``:
    elements of those of which S is known. ``base``, ``new``: ‖Θ_base‖² and ‖Θ'_base‖² there; where
    base is not known, ``base`` is the new base's. ``delta``, ``shift``: ‖Δ‖² and ‖S‖². ``moved``:
    ‖Δ‖² where S is known. ``along``: Δ · S. ``kept``: Θ_base · Θ'_base, ``kept_base`` and
    ``kept_new`` the squares there. ``fourth``: Σ Δ⁴. ``largest``: of |Δ|. ``zero``: elements that
    did not change. ``lost``: those that did, and whose change the output's rounding takes away.
    ``agree``, ``signed``: elements where Δ and S have one sign, and where both have one. ``cross``,
    ``cross_agree``, ``cross_signed``: (D, D), the same for two Δs. ``broken``: elements that are
    infinite or NaN somewhere; they count as unchanged. ``histogram``: int64 (D, `BUCKETS`).
    """

    tensors: Counts
    elements: Counts
    shifted: Counts
    base: Array
    new: Array
    delta: Array
    shift: Array
    moved: Array
    along: Array
    kept: Array
    kept_base: Array
    kept_new: Array
    fourth: Array
    largest: Array
    zero: Counts
    lost: Counts
    agree: Counts
    signed: Counts
    cross: Array
    cross_agree: Counts
    cross_signed: Counts
    broken: Counts
    histogram: Counts

    @classmethod
    def empty(cls, deltas: int) -> "Tally":
        """Of no tensors."""
        counts = {"tensors", "elements", "shifted", "zero", "lost", "agree", "signed", "broken"}
        counts |= {"cross_agree", "cross_signed", "histogram"}
        shapes = {"histogram": (deltas, BUCKETS)}
        shapes |= dict.fromkeys(("cross", "cross_agree", "cross_signed"), (deltas, deltas))
        made: dict[str, Any] = {
            each.name: np.zeros(
                shapes.get(each.name, (deltas,)), np.int64 if each.name in counts else np.float64
            )
            for each in fields(cls)
        }
        return cls(**made)

    def add(self, other: "Tally") -> None:
        """Add the sums of other tensors."""
        with np.errstate(over="ignore", invalid="ignore"):
            for each in fields(self):
                mine, its = getattr(self, each.name), getattr(other, each.name)
                if each.name == "largest":
                    np.maximum(mine, its, out=mine)
                else:
                    mine += its

    def without_histogram(self) -> "Tally":
        """The same sums, without what most memory is needed for."""
        return replace(self, histogram=np.zeros((len(self.elements), 0), np.int64))

    def quantile(self, delta: int, share: float) -> float:
        """The magnitude below which this share of a Δ's elements is, within `BOUND` of itself."""
        counts = self.histogram[delta]
        total = int(counts.sum())
        if not total:
            return math.nan
        rank = max(1, math.ceil(share * total))
        return middle(int(np.searchsorted(np.cumsum(counts), rank)))


def edge(bucket: int) -> float:
    """The least magnitude in a bucket of a histogram."""
    return float((np.array([bucket], np.uint32) << np.uint32(23 - FINE)).view(np.float32)[0])


def middle(bucket: int) -> float:
    """The middle of the magnitudes in a bucket of a histogram; 0 for the first, which has zeros."""
    if bucket == 0:
        return 0.0
    low, high = edge(bucket), edge(bucket + 1)
    return (low + high) / 2 if math.isfinite(high) else low
