"""Sums of filtered Δs, and TIES' election, by compiled code.

Terms are gathered by their sign, in double-double: row 0 of the accumulators holds the positive
ones, row 1 the negative ones. Without an election both rows are added to the new base; with one,
the heavier row is. Either way the result is rounded once.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from paramdelta.formats.view import float64
from paramdelta.schemes.dare import Drop
from paramdelta.schemes.scheme import BLOCK
from paramdelta.schemes.trim import Trim

if TYPE_CHECKING:
    from paramdelta.schemes.filter import Filter
    from paramdelta.schemes.pair import Pair

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
NO_ELECTION = False, False, 1.0


def combine(
    pairs: Sequence["Pair"],
    operands: Sequence[Array],
    start: int,
    out: Array,
    scratch: Floats,
    election: tuple[bool, bool, float] = NO_ELECTION,
) -> bool:
    """Fill ``out``, from element ``start``; True if every result is finite.

    ``operands``, ``out``, ``scratch``: as for `Scheme.combine`. ``election``: whether a sign is
    elected, whether what agrees is averaged, and the factor of the result.
    """
    from paramdelta.arithmetic import masks

    high, low, weights = scratch.reshape(3, 2, BLOCK)
    finite = True
    for first in range(0, out.size, BLOCK):
        block = slice(first, min(first + BLOCK, out.size))
        scratch.fill(0)
        for number, pair in enumerate(pairs):
            post, base = operands[1 + 2 * number][block], operands[2 + 2 * number][block]
            key, cutoff, threshold, others = _compiled(pair.filters)
            if others:
                post, base = _filtered(pair, others, post, base, start + first)
            masks.gather(
                post,
                base,
                pair.coefficient,
                abs(pair.scale),
                key,
                cutoff,
                np.uint64(start + first),
                threshold,
                high,
                low,
                weights,
            )
        finite &= masks.settle(operands[0][block], high, low, weights, *election, out[block])
    return finite


def terms_of(pairs: Sequence["Pair"], operands: Sequence[Array], start: int) -> Floats:
    """Every Δ in float64, filtered and multiplied: (pairs, N). ``operands``: post and base of each
    pair, as `dtypes` views them.
    """
    terms = np.empty((len(pairs), len(operands[0])))
    for number, pair in enumerate(pairs):
        post = float64(operands[2 * number], pair.post.dtype)
        base = float64(operands[2 * number + 1], pair.base.dtype)
        with np.errstate(all="ignore"):
            terms[number] = pair.coefficient * filtered(pair, _difference(post, base), start)
    return terms


def _difference(post: Floats, base: Floats) -> Floats:
    """``post − base`` in float64; equal infinities cancel."""
    with np.errstate(all="ignore"):
        return np.where(post == base, 0.0, post - base)


def filtered(pair: "Pair", difference: Floats, start: int) -> Floats:
    """A run of a Δ with zeros where a filter drops elements."""
    if not pair.filters:
        return difference
    kept = np.ones(len(difference), bool)
    for filter_ in pair.filters:
        kept &= filter_.keep(difference, start)
    return np.where(kept, difference, 0.0)


def _compiled(
    filters: Sequence["Filter"],
) -> tuple[np.uint64, np.uint64, float, list["Filter"]]:
    """Key, cutoff and threshold of the filters that the kernel knows, and the other filters."""
    key = cutoff = np.uint64(0)
    threshold, others = 0.0, []
    for filter_ in filters:
        if isinstance(filter_, Drop) and not cutoff:
            key, cutoff = np.uint64(filter_.key), np.uint64(filter_.cutoff)
        elif isinstance(filter_, Trim) and not threshold:
            assert filter_.threshold is not None, "the threshold was not measured"
            threshold = filter_.threshold
        else:
            others.append(filter_)
    return key, cutoff, threshold, others


def _filtered(
    pair: "Pair", filters: Sequence["Filter"], post: Array, base: Array, start: int
) -> tuple[Floats, Floats]:
    """Post and base in float64, both zero where a filter drops the element."""
    wide, narrow = float64(post, pair.post.dtype), float64(base, pair.base.dtype)
    difference = _difference(wide, narrow)
    for filter_ in filters:
        dropped = ~filter_.keep(difference, start)
        wide[dropped] = narrow[dropped] = 0.0
    return wide, narrow
