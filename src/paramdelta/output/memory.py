"""A sink in memory: each tensor as an array, announced when it is complete."""

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from paramdelta.dtypes import DTYPES
from paramdelta.output.layout import Layout
from paramdelta.output.sink import Durable, NotFinite
from paramdelta.storage.digest import Leaves

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class MemorySink:
    """Holds every tensor of an output; see `output.sink.Sink`.

    ``announce``: called with name and array when a tensor is complete, in a worker's thread.
    ``tensors``: by name, arrays as `dtypes` views them. ``files``: the small files.
    """

    def __init__(self, announce: Callable[[str, "npt.NDArray[Any]"], None] | None = None) -> None:
        self.tensors: dict[str, npt.NDArray[Any]] = {}
        self.files: dict[str, bytes] = {}
        self.finished = False
        self._announce = announce
        self._arrays: list[npt.NDArray[np.uint8]] = []
        self._left: list[int] = []
        self._lock = threading.Lock()

    def begin(self, layout: Layout) -> Durable:
        """See `Sink.begin`. Nothing is there before."""
        import numpy as np

        self.layout = layout
        for stream in layout.streams:
            data = np.empty(stream.nbytes, np.uint8)
            self._arrays.append(data)
            self._left.append(stream.nbytes)
            self.tensors[stream.name] = data.view(DTYPES[stream.dtype].numpy).reshape(stream.shape)
        return Durable()

    def writer(self) -> "MemorySink":
        """Itself: memory is shared by threads only."""
        return self

    def write(self, stream: int, offset: int, data: memoryview) -> int:
        """See `Writer.write`."""
        import numpy as np

        self._arrays[stream][offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        with self._lock:
            self._left[stream] -= len(data)
            complete = self._left[stream] == 0
        if complete and self._announce is not None:
            name = self.layout.streams[stream].name
            self._announce(name, self.tensors[name])
        return len(data)

    def commit(
        self,
        ranges: Iterable[tuple[int, int]],
        leaves: Leaves | None = None,
        not_finite: NotFinite | None = None,
    ) -> None:
        """Nothing to do."""

    def put(self, name: str, data: bytes) -> None:
        """See `Sink.put`."""
        self.files[name] = data

    def finish(self) -> None:
        """See `Sink.finish`."""
        self.finished = True

    def abort(self) -> None:
        """Nothing to do."""
