"""The inner loop of reading FP8, compiled by numba."""

from typing import Any

from paramdelta.compiled import compiled


@compiled
def multiply(
    values: Any,
    table: Any,
    scale: Any,
    out: Any,
    row: int,
    column: int,
    block_rows: int,
    block_columns: int,
) -> None:
    """``out[i, j] = table[values[i, j]] · scale[block of (row + i, column + j)]``.

    ``values``: uint8 (R, C). ``table``: float64 (256,). ``scale``: float64, a number a block.
    ``out``: float64 (R, C).
    """
    height, width = values.shape
    for i in range(height):
        scales = scale[(row + i) // block_rows]
        j = 0
        while j < width:
            at = (column + j) // block_columns
            stop = min(width, (at + 1) * block_columns - column)
            factor = scales[at]
            for k in range(j, stop):
                out[i, k] = table[values[i, k]] * factor
            j = stop
