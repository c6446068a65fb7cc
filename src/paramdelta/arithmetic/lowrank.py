"""The inner loop of a low-rank Δ, compiled by numba.

A library's matrix product sums in an order that depends on the shape of its operands, and so on how
a tensor is cut into slices. Here every element is the sum of its products in order, each rounded. A
resumed run, or one with more memory, ends in the same bytes. With eight products at a time it is as
fast as one thread of OpenBLAS.
"""

from typing import Any

from paramdelta.arithmetic.compiled import compiled

STRIP = 256  # columns per pass over all rows: eight strips fit in the L1 cache


@compiled
def accumulate(up: Any, first: int, down: Any, out: Any, row: int, column: int) -> None:
    """``out[row + i, column + j] += Σₖ up[i, first + k] · down[k, j]``, summed in order of k.

    ``up``: float64 (M, ≥ first + K). ``down``: float64 (K, N). ``out``: float64.
    """
    height, (depth, width) = up.shape[0], down.shape
    for begin in range(0, width, STRIP):
        end = min(width, begin + STRIP)
        k = 0
        while k + 8 <= depth:
            d0, d1, d2, d3 = (
                down[k, begin:end],
                down[k + 1, begin:end],
                down[k + 2, begin:end],
                down[k + 3, begin:end],
            )
            d4, d5, d6, d7 = (
                down[k + 4, begin:end],
                down[k + 5, begin:end],
                down[k + 6, begin:end],
                down[k + 7, begin:end],
            )
            for i in range(height):
                u = up[i, first + k : first + k + 8]
                u0, u1, u2, u3, u4, u5, u6, u7 = u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7]
                o = out[row + i, column + begin : column + end]
                for j in range(end - begin):
                    near = (((o[j] + u0 * d0[j]) + u1 * d1[j]) + u2 * d2[j]) + u3 * d3[j]
                    o[j] = (((near + u4 * d4[j]) + u5 * d5[j]) + u6 * d6[j]) + u7 * d7[j]
            k += 8
        while k < depth:
            for i in range(height):
                u0 = up[i, first + k]
                for j in range(begin, end):
                    out[row + i, column + j] += u0 * down[k, j]
            k += 1


@compiled
def add_squares(block: Any, squares: Any, columns: bool) -> None:
    """Add the squares of a matrix to a sum for each row, or for each column, in order.

    ``block``: float64 (M, N). ``squares``: float64 (M,), or (N,).
    """
    height, width = block.shape
    for i in range(height):
        for j in range(width):
            squares[j if columns else i] += block[i, j] * block[i, j]
