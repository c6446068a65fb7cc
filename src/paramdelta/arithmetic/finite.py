"""Which numbers are infinite or NaN."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_EXPONENTS: Mapping[str, int] = {"BF16": 0x7F80, "F16": 0x7C00}


def not_finite(array: npt.NDArray[Any], dtype: str) -> int:
    """How many numbers of an array, viewed as `dtypes` says, are infinite or NaN."""
    return int(np.count_nonzero(not_finite_mask(array, dtype)))


def not_finite_mask(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.bool_]:
    """Which numbers of an array, viewed as `dtypes` says, are infinite or NaN."""
    if dtype in _EXPONENTS and array.dtype.kind in "iu":
        return (array & _EXPONENTS[dtype]) == _EXPONENTS[dtype]  # type: ignore[no-any-return]
    finite: npt.NDArray[np.bool_] = np.isfinite(array)
    return ~finite
