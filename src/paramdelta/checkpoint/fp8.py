"""The inner loop of reading FP8, compiled by numba."""

from typing import Any

import numpy as np

from paramdelta.compiled import compiled, f32_bits, f32_from_bits, inlined

I8, I32, U32, U64 = np.int8, np.int32, np.uint32, np.uint64
F32, F64 = np.float32, np.float64


@inlined
def _value(code: Any, mantissa: Any, special: Any, repair: Any) -> Any:
    """A code as float32, exact; codes from ``special`` on are no numbers."""
    # Shifted into place, the sign where float32 has it.
    placed = U32(U32(I32(I8(code))) << U32(23 - mantissa)) & U32(0x80000000 | 0x7F << 23 - mantissa)
    # There the exponent is too small; multiplying repairs it, subnormals included.
    bits = f32_bits(F32(f32_from_bits(U32(placed)) * F32(repair)))
    is_special = U32(U32(code) & U32(0x7F)) >= U32(special)
    return f32_from_bits(U32(placed | U32(0x7F800000)) if is_special else U32(bits))


@inlined
def _multiply(codes: Any, start: Any, stop: Any, scale: Any, mantissa: Any, out: Any) -> Any:
    # Indices without a sign: numba counts negative ones from the end, which forbids vectors.
    if mantissa == 3:  # E4M3 has no infinity: all ones is NaN
        for i in range(U64(start), U64(stop)):
            out[i] = F64(_value(codes[i], 3, 0x7F, 2.0**120)) * scale
    else:
        for i in range(U64(start), U64(stop)):
            out[i] = F64(_value(codes[i], 2, 0x7C, 2.0**112)) * scale


@compiled
def decode(
    codes: Any,
    scales: Any,
    out: Any,
    mantissa: int,
    columns: int,
    row: int,
    column: int,
    height: int,
    width: int,
) -> None:
    """``out = codes · scale of the block``, a run of a matrix of so many columns, row-major.

    ``codes``: uint8 (N,), E4M3 or E5M2 (OCP OFP8) as ``mantissa``, its bits, is 3 or 2. ``scales``:
    float64, a number a block, (blocks down, blocks across). ``out``: float64 (N,), exact where the
    scales are float32. ``row``, ``column``: place of the first element; rows are counted from the
    first that ``scales`` covers. ``height``, ``width``: rows and columns of a block.
    """
    at = 0
    while at < out.size:
        end = min(columns, column + out.size - at)
        across = column // width
        while column < end:
            stop = at + min((across + 1) * width, end) - column
            _multiply(codes, at, stop, scales[row // height, across], mantissa, out)
            column += stop - at
            across += 1
            at = stop
        row, column = row + 1, 0
