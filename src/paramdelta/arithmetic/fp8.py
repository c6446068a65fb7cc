"""FP8 numbers with a scale for each block: a run of them, and its decoding.

Compiled by numba. E4M3 and E5M2 are those of OCP's 8-bit Floating Point Specification (OFP8).
"""

from typing import Any, NamedTuple

import numpy as np

from paramdelta.arithmetic.compiled import compiled, f32_bits, f32_from_bits, inlined

I8, I32, U32, U64 = np.int8, np.int32, np.uint32, np.uint64
F32, F64 = np.float32, np.float64
MOVED = 2.0**120  # the difference of the exponent biases: 7 in E4M3, 127 in float32


class Codes(NamedTuple):
    """A run of the elements of a matrix, row-major, as they are stored.

    ``codes``: uint8 (N,). ``scales``: float64, one per block, (blocks down, blocks across), from
    the first block that the run touches. ``row``, ``column``: position of the first element, where
    row 0 is the first that ``scales`` covers. ``columns``: of the matrix. ``height``, ``width``:
    rows and columns of a block. ``mantissa``: bits, 3 in E4M3 and 2 in E5M2.
    """

    codes: Any
    scales: Any
    row: int
    column: int
    columns: int
    height: int
    width: int
    mantissa: int


@inlined
def scales_of(run: Any, row: Any) -> Any:
    """The scales of row number ``row`` of the run, from left to right."""
    return run.scales[(run.row + row) // run.height]


@inlined
def moved_e4m3(code: Any) -> Any:
    """Sign and magnitude of an E4M3 code moved to their places in a float32.

    The result is the value divided by `MOVED`, exact except for NaN.
    """
    return f32_from_bits(U32(U32(U32(I32(I8(code))) << U32(20)) & U32(0x87F00000)))


@inlined
def _e4m3(code: Any) -> Any:
    is_nan = U32(U32(code) & U32(0x7F)) == U32(0x7F)  # there is no infinity
    bits = f32_bits(F32(moved_e4m3(code) * F32(MOVED)))
    return f32_from_bits(U32(0x7FC00000) if is_nan else U32(bits))


@inlined
def _e5m2(code: Any) -> Any:
    moved = U32(U32(U32(I32(I8(code))) << U32(21)) & U32(0x8FE00000))
    bits = f32_bits(F32(f32_from_bits(moved) * F32(2.0**112)))
    is_special = U32(U32(code) & U32(0x7F)) >= U32(0x7C)
    return f32_from_bits(U32(moved | U32(0x7F800000)) if is_special else U32(bits))


@inlined
def has_numbers_only(run: Any) -> Any:
    """Whether a run is in E4M3 and contains no NaN."""
    found = U32(0)
    for i in range(run.codes.size):
        found |= U32(1) if U32(run.codes[i] & U32(0x7F)) == U32(0x7F) else U32(0)
    return run.mantissa == 3 and found == U32(0)


@inlined
def _multiply(run: Any, start: Any, stop: Any, scale: Any, out: Any) -> Any:
    codes = run.codes
    # Unsigned indices: numba checks signed ones for negative values, which prevents vectorization.
    if run.mantissa == 3:
        for i in range(U64(start), U64(stop)):
            out[i] = F64(_e4m3(codes[i])) * scale
    else:
        for i in range(U64(start), U64(stop)):
            out[i] = F64(_e5m2(codes[i])) * scale


@compiled
def decode(run: Codes, out: Any) -> None:
    """``out = codes · scale of the block``, float64 (N,); exact where the scales are float32."""
    row, column, at = 0, run.column, 0
    while at < out.size:
        scales = scales_of(run, row)
        across = column // run.width
        end = min(run.columns, column + out.size - at)
        while column < end:
            stop = at + min((across + 1) * run.width, end) - column
            _multiply(run, at, stop, scales[across], out)
            column += stop - at
            across += 1
            at = stop
        row, column = row + 1, 0
