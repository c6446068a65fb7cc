"""Functions on arrays compiled by numba for the machine at hand."""

from typing import Any

import numba


def compiled(function: Any) -> Any:
    """Compile at the first call, once for each combination of dtypes; the GIL is released.

    The machine code is kept on disk beside the source, or in the user's cache where that is
    read-only; where no place is found, it is made again in each process.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder is writable: numba finds no place for its cache
        return numba.njit(nogil=True)(function)
