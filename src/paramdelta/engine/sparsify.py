"""Sums of Δ that are not whole: DARE's random masks, magnitudes below a threshold, TIES' election.

Terms are gathered by their sign, in double-double: row 0 of the accumulators has the positive ones,
row 1 the negative ones. Without an election both rows are added to the new base; with one, the
heavier row is. Either way the result is rounded once.

Whether an element is left depends on the element alone: `hashed` of its number in the tensor, and
its magnitude. So neither slices nor threads can be seen in the output.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from paramdelta.engine.slices import BLOCK

if TYPE_CHECKING:
    from paramdelta.planning.plan import OutputTensor


def combine(
    tensor: "OutputTensor",
    operands: list[npt.NDArray[Any]],
    start: int,
    out: npt.NDArray[Any],
) -> bool:
    """Fill ``out`` with a run of a sparse tensor, from element ``start`` on; True if all of it is
    finite.

    ``operands`` and ``out``: as for `engine.run.combine`.
    """
    from paramdelta.arithmetic import masks  # compiled code, not needed for planning

    high, low, weights = (np.empty((2, BLOCK)) for _ in range(3))
    ties = tensor.ties
    finite = True
    for first in range(0, out.size, BLOCK):
        block = slice(first, min(first + BLOCK, out.size))
        for array in (high, low, weights):
            array.fill(0)
        for number, pair in enumerate(tensor.pairs):
            post, base = operands[1 + 2 * number], operands[2 + 2 * number]
            left = pair.sparsity
            threshold = left.threshold if left is not None and left.trims else 0.0
            if threshold is None:
                raise AssertionError(f"{tensor.name}: the thresholds were not looked for")
            masks.gather(
                post[block],
                base[block],
                pair.coefficient,
                abs(pair.scale),
                np.uint64(left.key if left is not None else 0),
                np.uint64(left.cutoff if left is not None else 0),
                np.uint64(start + first),
                threshold,
                high,
                low,
                weights,
            )
        finite &= masks.settle(
            operands[0][block],
            high,
            low,
            weights,
            ties is not None,
            ties is not None and ties.normalize,
            ties.scale if ties is not None else 1.0,
            out[block],
        )
    return finite
