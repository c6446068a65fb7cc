"""Encodings: how the numbers of an output tensor are stored.

A tensor is stored as one or more streams, each a tensor of the weight files. A new encoding is one
class in one file.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paramdelta.dtypes import DTYPES
from paramdelta.formats.view import View

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class Stream:
    """One tensor of the weight files: name, safetensors dtype, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the weight file."""
        return DTYPES[self.dtype].nbytes(self.elements)


class Encoding(ABC):
    """How an output tensor is stored. Frozen and picklable.

    ``dtype``: safetensors dtype of the main stream.
    """

    dtype: str

    @property
    @abstractmethod
    def work(self) -> str:
        """The safetensors dtype of the values that `encode` takes. With ``dtype``, nothing is left
        to encode: the scheme rounds straight into the output.
        """

    @abstractmethod
    def streams(self, name: str, shape: tuple[int, ...]) -> tuple[Stream, ...]:
        """What is stored for a tensor; the main stream, under the tensor's own name, is first."""

    def task(self, shape: tuple[int, ...], most: int) -> int:
        """Elements of a task. ``most``: as many as fit in a buffer, whole rows if possible."""
        return most

    def held(self, shape: tuple[int, ...]) -> int:
        """Bytes that a worker holds for a task beside its buffers."""
        return 0

    def runs(self, shape: tuple[int, ...], start: int, stop: int) -> tuple[range, ...]:
        """The elements of every stream that hold elements ``start`` to ``stop`` of the tensor."""
        return (range(start, stop),)

    def encode(
        self, values: "npt.NDArray[Any]", shape: tuple[int, ...], into: Sequence[memoryview]
    ) -> int:
        """Fill the bytes of a task's run in every stream.

        ``values``: of dtype ``work``, one task. Returns how many finite values cannot be held.
        """
        raise NotImplementedError

    def stored(self, view: View) -> tuple[View, ...] | None:
        """Views whose bytes are the streams of a tensor that is a copy of ``view``; None if the
        copy has to be encoded.
        """
        return None
