"""Tensors of GGUF files as views: quantized blocks, and norms that are stored plus one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paramdelta.formats.gguf.types import Type
from paramdelta.formats.view import Derived, Fetch, Tensor, View
from paramdelta.storage.readahead import Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GATHERED = 1 << 20  # bytes of decoded blocks from which short runs are picked


@dataclass(frozen=True)
class Quantized(View):
    """The numbers of ggml's quantized blocks, exactly as ggml gives them in float32.

    ``stored``: the blocks, U8, row by row; every row is a whole number of blocks.
    """

    stored: Tensor
    type: Type

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The blocks."""
        return (self.stored,)

    @property
    def is_stored(self) -> bool:
        """The numbers are computed."""
        return False

    @property
    def is_quantized(self) -> bool:
        """Always."""
        return True

    @property
    def identity(self) -> list[Any]:
        """The blocks and their type."""
        return ["ggml", self.stored.identity, self.type.name]

    def scratch(self, size: int) -> int:
        """The blocks of a run, or blocks from which short runs are picked."""
        return size * self.type.size // (4 * self.type.elements) + 2 * GATHERED

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The blocks that hold the run."""
        each, size = self.type.elements, self.type.size
        return self.stored.runs(start // each * size, -(-stop // each) * size)

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Read the blocks that hold the run and decode them; those that it cuts, by themselves."""
        import numpy as np

        values = np.frombuffer(into, np.float32)[: stop - start]
        if not values.size:
            return
        each = self.type.elements
        first, last = start // each, -(-stop // each)
        blocks = np.empty((last - first, self.type.size), np.uint8)
        self.stored.read(first * self.type.size, last * self.type.size, _bytes(blocks), fetch)
        begin, end = -(-start // each), stop // each  # the blocks that are whole in the run
        if begin >= end:
            values[:] = self._decoded(blocks)[start - first * each : stop - first * each]
            return
        at, to = begin * each - start, end * each - start
        self._decode(blocks[begin - first : end - first], values[at:to])
        if at:
            values[:at] = self._decoded(blocks[:1])[-at:]
        if to < values.size:
            values[to:] = self._decoded(blocks[-1:])[: values.size - to]

    def gather(self, starts: "npt.NDArray[np.int64]", into: memoryview, fetch: Fetch) -> None:
        """Read the blocks that hold each run, for many runs at once."""
        import numpy as np

        each = self.type.elements
        values = np.frombuffer(into, np.float32).reshape(len(starts), -1)
        length = values.shape[1]
        if not values.size:
            return
        # Every run gets equally many blocks, shifted where the tensor ends before.
        count = min((length + each - 2) // each + 1, self.elements // each)
        whole = length % each == 0 and not (starts % each).any()
        count = length // each if whole else count
        first = np.minimum(starts // each, self.elements // each - count)
        some = max(1, GATHERED // (4 * count * each))
        columns = np.arange(length)
        for begin in range(0, len(starts), some):
            part = slice(begin, begin + some)
            blocks = np.empty((len(first[part]) * count, self.type.size), np.uint8)
            self.stored.gather(first[part] * self.type.size, _bytes(blocks), fetch)
            if whole:
                self._decode(blocks, values[part].reshape(-1))
                continue
            decoded = self._decoded(blocks).reshape(-1, count * each)
            shift = starts[part] - first[part] * each
            values[part] = np.take_along_axis(decoded, shift[:, None] + columns, axis=1)

    def _decoded(self, blocks: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.float32]":
        import numpy as np

        values = np.empty(len(blocks) * self.type.elements, np.float32)
        self._decode(blocks, values)
        return values

    def _decode(self, blocks: "npt.NDArray[np.uint8]", out: "npt.NDArray[np.float32]") -> None:
        from paramdelta.arithmetic import ggml  # compiled code

        ggml.decode(self.type.name, blocks, out.reshape(-1, self.type.elements))


@dataclass(frozen=True)
class MinusOne(Derived):
    """The view minus one, in float32: Gemma's norms, which GGUF files hold plus one."""

    @property
    def is_stored(self) -> bool:
        """The numbers are computed."""
        return False

    @property
    def identity(self) -> list[Any]:
        """The view, shifted."""
        return ["minus one", self.view.identity]

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """Those of the view."""
        return self.view.runs(start, stop)

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Read and subtract."""
        import numpy as np

        self.view.read(start, stop, into, fetch)
        values = np.frombuffer(into, np.float32)[: stop - start]
        np.subtract(values, np.float32(1), out=values)

    def gather(self, starts: "npt.NDArray[np.int64]", into: memoryview, fetch: Fetch) -> None:
        """Read and subtract."""
        import numpy as np

        self.view.gather(starts, into, fetch)
        values = np.frombuffer(into, np.float32)
        np.subtract(values, np.float32(1), out=values)


def _bytes(array: "npt.NDArray[Any]") -> memoryview:
    return array.data.cast("B")
