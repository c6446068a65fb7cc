"""What an output tensor is: the formula written out once more, in float64 and in fractions."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from paramdelta.jobs.verify import reference
from paramdelta.jobs.verify.reference import Near
from paramdelta.jobs.verify.rounding import as_float
from paramdelta.jobs.verify.stored import Stored
from paramdelta.planning.plan import OutputTensor
from paramdelta.schemes.sparse import filtered

Floats = npt.NDArray[np.float64]

HALF = Fraction(1, 2)
TOLERANCE = HALF + Fraction(1, 2**30)  # units of the last place, where sums are double-double
LEAST = Fraction(1, 2**1074)  # the least float64: what a product loses where it is smaller
MERGED = Fraction(1, 2**51)  # share by which schemes that do not just add may round their result
UNKNOWN = Fraction(1, 2**48)  # share of the terms by which a scheme without `exact` may differ


def operands(tensor: OutputTensor, start: int, stop: int, stored: Stored) -> list[Floats]:
    """A run of every operand: the new base, then post and base of each pair."""
    found = [reference.wide(view, start, stop, stored) for view in tensor.views]
    return [found[place] for place in tensor.places]


def total(tensor: OutputTensor, values: Sequence[Floats], start: int) -> Floats:
    """The formula in float64. ``values``: of `operands`; ``start``: number of the first element."""
    if not tensor.pairs:
        return values[0]
    with np.errstate(all="ignore"):
        sums: Floats = values[0] + tensor.scheme.reference(
            _terms(tensor, values, start), tensor.pairs
        )
    if is_simple(tensor):  # infinities of the new base and of what is subtracted cancel
        plus, minus = values[1:] if tensor.pairs[0].scale == 1 else values[:0:-1]
        sums = np.where(np.isinf(values[0]) & (values[0] == minus), plus, sums)
    return sums


def _terms(tensor: OutputTensor, values: Sequence[Floats], start: int) -> Floats:
    """Every Δ, filtered and multiplied: (pairs, N)."""
    terms = np.empty((len(tensor.pairs), values[0].size))
    for term, pair, post, base in zip(terms, tensor.pairs, values[1::2], values[2::2], strict=True):
        np.subtract(post, base, out=term)
        term[post == base] = 0.0  # infinities too
        if pair.filters:
            term[:] = filtered(pair, term, start)
        if pair.coefficient != 1:
            term *= pair.coefficient
    return terms


def exact_total(
    tensor: OutputTensor, element: int, values: Sequence[float], stored: Stored
) -> Near | None:
    """The formula for one element in exact arithmetic, and how far what the engine rounds may be
    from it; None if an operand is not finite.

    ``values``: of `operands`, for this element.
    """
    if not all(map(math.isfinite, values)):
        return None
    first, slack = reference.exact(tensor.new, element, values[0], stored)
    terms: list[Fraction] = []
    near: list[Fraction] = []  # by term: how far the engine's may be from it
    for pair, post, base in zip(tensor.pairs, values[1::2], values[2::2], strict=True):
        difference = np.array([post - base])
        if not all(filter_.keep(difference, element)[0] for filter_ in pair.filters):
            terms.append(Fraction(0))
            near.append(Fraction(0))
            continue
        plus, error = reference.exact(pair.post, element, post, stored)
        minus, also = reference.exact(pair.base, element, base, stored)
        factor = Fraction(pair.coefficient)
        terms.append(factor * (plus - minus))
        near.append(abs(factor) * (error + also) + (LEAST if abs(factor) != 1 else 0))
    if not terms:
        return first, slack
    merged = tensor.scheme.exact(terms, tensor.pairs)
    if merged is None:  # the scheme is defined by its float64 result
        result = tensor.scheme.reference(np.array([[as_float(t)] for t in terms]), tensor.pairs)
        size = abs(first) + sum(map(abs, terms), Fraction(0))
        if not math.isfinite(result[0]):
            return None
        return first + Fraction(float(result[0])), slack + sum(near) + UNKNOWN * size
    for number, error in enumerate(near):
        if error:
            slack += _moved(tensor, terms, number, error, merged)
    if not tensor.linear:
        slack += MERGED * abs(merged)
    return first + merged, slack


def _moved(
    tensor: OutputTensor,
    terms: Sequence[Fraction],
    number: int,
    error: Fraction,
    merged: Fraction,
) -> Fraction:
    """How far the result of the scheme moves when one term moves by ``error``."""
    found = [
        tensor.scheme.exact([*terms[:number], term, *terms[number + 1 :]], tensor.pairs)
        for term in (terms[number] - error, terms[number] + error)
    ]
    return max(abs(other - merged) for other in found if other is not None)


def allowed(tensor: OutputTensor) -> Fraction:
    """How far a number may be from the exact value, in units of the last place.

    A copy in another dtype, and a whole Δ at scale 1, are correctly rounded.
    """
    simple = not tensor.pairs or is_simple(tensor)
    return HALF if simple and tensor.dtype != "F64" else TOLERANCE


def is_simple(tensor: OutputTensor) -> bool:
    """Whether one whole Δ is added or subtracted."""
    return len(tensor.pairs) == 1 and abs(tensor.pairs[0].scale) == 1 and tensor.linear
