"""Measures of a group of tensors, made of its tally."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from paramdelta.jobs.tally import Tally

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class Shift:
    """The shift S = Θ'_base − Θ_base beside one Δ.

    ``norm``: ‖S‖. ``relative``: ‖S‖ / ‖Θ_base‖. ``ratio``: ‖S‖ / ‖Δ‖. ``cosine``: of Δ and S.
    ``agreement``: the share of elements where both differ from zero in which they have one sign.
    ``bases``: the cosine of Θ_base and Θ'_base. None where a norm is zero.
    """

    norm: float
    relative: float | None
    ratio: float | None
    cosine: float | None
    agreement: float | None
    bases: float | None


@dataclass(frozen=True)
class DeltaMeasures:
    """One Δ in a group of tensors.

    ``delta``: its number in the recipe. ``elements``: of ``tensors`` tensors. ``norm``: ‖Δ‖, and
    ``base_norm``: ‖Θ_base‖, or ‖Θ'_base‖ where base is not known. ``relative``: their ratio.
    ``largest``: of |Δ|. ``unchanged``: share of elements that are zero. ``rounded_away``: share of
    elements that are not zero and do not change the output, because its dtype cannot hold the sum.
    ``kurtosis``: E[Δ⁴] / E[Δ²]², 3 for a normal distribution. ``quantiles``: of |Δ|, by share,
    within `jobs.tally.BOUND` of themselves. ``shift``: None where base is not known.
    """

    delta: int
    tensors: int
    elements: int
    norm: float
    base_norm: float
    relative: float | None
    largest: float
    unchanged: float
    rounded_away: float
    kurtosis: float | None
    quantiles: tuple[tuple[float, float], ...]
    shift: Shift | None


@dataclass(frozen=True)
class PairMeasures:
    """Two Δs: their cosine, and the share of equal signs where neither is zero."""

    one: int
    two: int
    cosine: float | None
    agreement: float | None


@dataclass(frozen=True)
class Group:
    """Some tensors. ``deltas``: those of the recipe that they have. ``not_finite``: elements."""

    deltas: tuple[DeltaMeasures, ...]
    pairs: tuple[PairMeasures, ...]
    not_finite: int

    def of(self, delta: int) -> DeltaMeasures | None:
        """The measures of one Δ; None if no tensor has it."""
        return next((each for each in self.deltas if each.delta == delta), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain values; NaN and infinities are None."""
        plain = asdict(self)
        for each in plain["deltas"]:
            each["quantiles"] = {f"{share:g}": value for share, value in each["quantiles"]}
        return plain


def group(tally: Tally) -> Group:
    """The measures of a tally."""
    numbers = np.flatnonzero(tally.elements).tolist()
    pairs = tuple(
        PairMeasures(
            i,
            j,
            _cosine(tally.cross[i, j], tally.delta[i], tally.delta[j]),
            _ratio(tally.cross_agree[i, j], tally.cross_signed[i, j]),
        )
        for at, i in enumerate(numbers)
        for j in numbers[at + 1 :]
    )
    return Group(tuple(_delta(tally, n) for n in numbers), pairs, int(tally.broken.max(initial=0)))


def _delta(tally: Tally, n: int) -> DeltaMeasures:
    elements, square = int(tally.elements[n]), float(tally.delta[n])
    broken = int(tally.broken[n])
    return DeltaMeasures(
        n,
        int(tally.tensors[n]),
        elements,
        _root(square),
        _root(tally.base[n]),
        _ratio(_root(square), _root(tally.base[n])),
        float(tally.largest[n]),
        max(0, int(tally.zero[n]) - broken) / elements,
        int(tally.lost[n]) / elements,
        _ratio(float(tally.fourth[n]) * elements, square * square),
        tuple((share, tally.quantile(n, share)) for share in QUANTILES if tally.histogram.size),
        _shift(tally, n) if tally.shifted[n] else None,
    )


def _shift(tally: Tally, n: int) -> Shift:
    norm = _root(tally.shift[n])
    return Shift(
        norm,
        _ratio(norm, _root(tally.kept_base[n])),
        _ratio(norm, _root(tally.moved[n])),
        _cosine(tally.along[n], tally.moved[n], tally.shift[n]),
        _ratio(tally.agree[n], tally.signed[n]),
        _cosine(tally.kept[n], tally.kept_base[n], tally.kept_new[n]),
    )


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else math.nan


def _ratio(one: float, two: float) -> float | None:
    return _plain(float(one) / float(two)) if two else None


def _cosine(product: float, one: float, two: float) -> float | None:
    if not (one > 0 and two > 0):
        return None
    square = float(one) * float(two)  # its root is exact for a vector with itself
    known = 1e-290 < square < math.inf
    cosine = _plain(float(product) / (math.sqrt(square) if known else math.sqrt(one) * two**0.5))
    return None if cosine is None else max(-1.0, min(1.0, cosine))  # rounding may go beyond


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
