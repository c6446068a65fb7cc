"""Compiles functions on arrays with numba; reads the bits of floats as integers and back."""

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

inlined = numba.njit
"""For functions that compiled functions call: they are inlined."""

summed = numba.njit(fastmath={"reassoc"})
"""As `inlined`, but sums may be taken in the order that suits the processor's vectors."""


def compiled(function: Any) -> Any:
    """Compile at the first call, once for each combination of dtypes. The GIL is released.

    Machine code is cached on disk beside the source, or in the user's cache folder if that is
    read-only. Without a writable folder it is compiled again in each process.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder is writable, so numba has no place for its cache
        return numba.njit(nogil=True)(function)


def _bitcast(source: Any, target: Any, llvm: Any) -> Any:
    """An intrinsic that reads the bits of one scalar as another type of the same size."""

    def typed(_context: Any, _value: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], llvm)

        return target(source), generate

    return intrinsic(typed)


f32_from_bits = _bitcast(types.uint32, types.float32, ir.FloatType())
f32_bits = _bitcast(types.float32, types.uint32, ir.IntType(32))
f64_from_bits = _bitcast(types.uint64, types.float64, ir.DoubleType())
f64_bits = _bitcast(types.float64, types.uint64, ir.IntType(64))
