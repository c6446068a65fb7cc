"""Many small reads in one call, compiled by numba: the interpreter and its lock stay out of it."""

from typing import Any

from numba import types

from paramdelta.arithmetic.compiled import compiled

# ssize_t pread(int, void *, size_t, off_t), addresses as numbers; off_t has 64 bits wherever numba
# runs.
_pread = types.ExternalFunction(
    "pread", types.intp(types.int32, types.uintp, types.uintp, types.int64)
)


@compiled
def read_parts(descriptor: int, buffer: Any, offsets: Any) -> int:
    """Fill equal parts of ``buffer``, uint8, one for each of ``offsets``, int64, in a file.

    Returns how many parts, from the first on, were filled; fewer than all if a read failed or
    brought less.
    """
    size = buffer.size // offsets.size
    for number in range(offsets.size):
        address = buffer.ctypes.data + number * size
        if _pread(descriptor, address, size, offsets[number]) != size:
            return number
    return offsets.size
