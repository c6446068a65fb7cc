"""Views over arrays in memory, for tests: a fetch that copies and counts."""

import numpy as np

from paramdelta.formats.view import Fetch, Starts, Tensor
from paramdelta.storage.blob import Blob

NAMES = {"uint16": "BF16", "float32": "F32", "float64": "F64", "int16": "F16", "uint8": "F8_E4M3"}


def one_by_one(fetch: Fetch, tensor: Tensor, starts: Starts, into: memoryview) -> None:
    """Several runs by a fetch that can one."""
    size = len(into) // len(starts)
    for number, start in enumerate(starts.tolist()):
        fetch(tensor, start, into[number * size : (number + 1) * size])


class Store:
    """Arrays that stand as stored tensors; ``reads`` counts what was fetched."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.reads: list[tuple[str, int, int]] = []

    def tensor(self, name: str, array: np.ndarray, dtype: str | None = None) -> Tensor:
        """The array as a stored tensor."""
        self.arrays[name] = np.ascontiguousarray(array)
        dtype = dtype or NAMES[array.dtype.name]
        return Tensor(name, dtype, array.shape, Blob(name, array.nbytes, ""), 0, array.nbytes)

    def fetch(self, tensor: Tensor, start: Starts, into: memoryview) -> None:
        """Copy a run of elements, or several, checked as a file would check it."""
        if not isinstance(start, int):
            one_by_one(self.fetch, tensor, start, into)
            return
        flat = self.arrays[tensor.name].reshape(-1)
        count = len(into) // flat.itemsize
        assert 0 <= start <= start + count <= flat.size, (tensor.name, start, count)
        self.reads.append((tensor.name, start, count))
        into[:] = memoryview(flat[start : start + count].tobytes())
