"""Stored tensors as arrays, read through a `Reader`."""

from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.formats.view import Tensor
from paramdelta.storage.reader import Reader

Array = npt.NDArray[Any]
Places = npt.NDArray[np.int64]

SHORT = 256  # bytes: shorter runs are joined where they touch, and read in the order of the file


class Stored:
    """Reads runs of stored tensors as arrays of the dtype that `dtypes` gives them."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def run(self, tensor: Tensor, start: int, stop: int) -> Array:
        """Elements ``start`` to ``stop``; raises as `Reader.read`.

        Of a dtype below 8 bits: the bytes that hold them.
        """
        kind = tensor.kind
        first, last = kind.nbytes(start), kind.nbytes(stop)
        data = np.empty(last - first, np.uint8)
        if data.size:
            self.reader.read(tensor.blob, tensor.offset + first, data.data)
        return data.view(kind.numpy)

    def runs(self, tensor: Tensor, starts: Places, length: int) -> Array:
        """Runs of equal length, one from each element of ``starts``: (runs, length)."""
        if not starts.size or not length:
            return np.empty((starts.size, length), tensor.kind.numpy)
        if length * tensor.kind.size < SHORT and (np.diff(starts) <= length).any():
            return self._scattered(tensor, starts[:, None] + np.arange(length))
        return self._fetched(tensor, starts, length)

    def _scattered(self, tensor: Tensor, elements: Places) -> Array:
        """Elements at any places: what lies side by side is read together."""
        wanted, inverse = np.unique(elements, return_inverse=True)
        begins = np.flatnonzero(np.diff(wanted, prepend=-2) != 1)
        lengths = np.diff(begins, append=wanted.size)
        size = int(np.gcd.reduce(lengths))
        if size * 8 >= wanted.size / begins.size:  # runs that are multiples of one length
            found = self._fetched(tensor, wanted[::size], size).reshape(-1)
            return found[inverse.reshape(elements.shape)]
        # Runs of odd lengths: read the pages that hold them, about as long as a run.
        page = min(1 << (int(wanted.size // begins.size).bit_length()), tensor.elements)
        pages, number = np.unique(wanted // page, return_inverse=True)
        starts = np.minimum(pages * page, tensor.elements - page)
        found = self._fetched(tensor, starts, page)
        values = found[number, wanted - starts[number]]
        return values[inverse.reshape(elements.shape)]

    def _fetched(self, tensor: Tensor, starts: Places, length: int) -> Array:
        found = np.empty((starts.size, length), tensor.kind.numpy)
        among = range(tensor.offset, tensor.offset + tensor.size)
        offsets = tensor.offset + starts.astype(np.int64) * tensor.kind.size
        self.reader.read_many(tensor.blob, offsets, found.data.cast("B"), among)
        return found
