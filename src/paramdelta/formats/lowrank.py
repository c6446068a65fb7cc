"""A low-rank view: the product of two thin matrices, which is never made whole.

``factor · up @ down`` with ``up`` (R, r) and ``down`` (r, C): a run of it is computed when it is
read.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from paramdelta.formats.view import (
    Fetch,
    Tensor,
    Transposed,
    View,
    cache_of,
    float64,
    rectangles,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[Any]

BLOCK = 1 << 17  # elements of a factor that are widened at a time: 1 MiB as float64
EIGHT = 8  # products that the inner loop adds together
DEEP = 1 << 12  # columns of `up` that are taken at a time
KEPT = 16 << 20  # bytes of `down` that stay in memory between slices, for all threads together


@dataclass(frozen=True)
class LowRank(View):
    """``factor · up @ down`` in float64: each element the sum of its products, in order.

    ``up``: (R, r). ``down``: (r, C). ``shape``: (R, C), or any whose elements are those: a
    convolution's kernel. An element does not depend on the run in which it is read.

    Memory of a read beside its result: `KEPT` in all, and about 3 MiB a thread.
    """

    up: View
    down: View
    factor: float

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Those of both factors."""
        return self.up.parts + self.down.parts

    @property
    def identity(self) -> list[Any]:
        """Both factors and the number."""
        return ["low rank", self.up.identity, self.down.identity, self.factor]

    @property
    def nbytes(self) -> int:
        """Those of both factors."""
        return self.up.nbytes + self.down.nbytes

    def turned(self) -> "LowRank":
        """The same Δ for a weight whose axes are exchanged."""
        shape = self.shape[::-1]
        return replace(self, shape=shape, up=turned(self.down), down=turned(self.up))

    @property
    def is_stored(self) -> bool:
        """Only the factors are."""
        return False

    def scratch(self, size: int) -> int:
        """Blocks of both factors."""
        return 3 * 8 * BLOCK

    @property
    def caches(self) -> dict[str, int]:
        """Blocks of one factor; those of the factors' own views."""
        return {**self.up.caches, **self.down.caches, "low rank": KEPT}

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Multiply block by block of the factors what the run needs."""
        import numpy as np

        for rows, columns, target in rectangles(start, stop, self.down.shape[1], into, 8):
            out = np.frombuffer(target, np.float64).reshape(len(rows), len(columns))
            out[:] = 0
            for deep in _cut(range(self.up.shape[1]), DEEP):
                for some in _cut(rows, BLOCK // len(deep)):
                    self._add(some, columns, deep, out, some.start - rows.start, fetch)
            out *= self.factor

    def _add(
        self, rows: range, columns: range, deep: range, out: "Array", row: int, fetch: Fetch
    ) -> None:
        """Add the products of one run of `up`'s columns to rows of ``out`` from ``row`` on."""
        from paramdelta.arithmetic import lowrank  # compiled code, not needed for planning

        kept = cache_of(fetch, "low rank", lambda: _Kept(KEPT))
        up = float64(_block(self.up, rows, deep, fetch), self.up.dtype)
        for some in _cut(columns, BLOCK // EIGHT):
            for few in _cut(deep, BLOCK // len(some) // EIGHT * EIGHT):
                stored = kept.get(self.down, (few, some))
                if stored is None:
                    stored = _block(self.down, few, some, fetch)
                    kept.put(self.down, (few, some), stored)
                down = float64(stored, self.down.dtype)
                column = some.start - columns.start
                lowrank.accumulate(up, few.start - deep.start, down, out, row, column)


def turned(view: View) -> View:
    """A view of two axes with the axes exchanged."""
    if isinstance(view, Transposed):
        return view.view
    return Transposed(view.name, view.dtype, view.shape[::-1], view)


def _cut(whole: range, step: int) -> Iterator[range]:
    """A range in pieces of at most ``step``."""
    for start in range(whole.start, whole.stop, max(1, step)):
        yield range(start, min(start + max(1, step), whole.stop))


def _block(view: View, rows: range, columns: range, fetch: Fetch) -> "Array":
    """A rectangle of a view of two axes as `dtypes` says, contiguous."""
    import numpy as np

    if isinstance(view, Transposed):
        return np.ascontiguousarray(_block(view.view, columns, rows, fetch).T)
    width = view.shape[1]
    if len(columns) == width:
        block = view.array(rows.start * width, rows.stop * width, fetch)
        return block.reshape(len(rows), width)
    block = np.empty((len(rows), len(columns)), view.kind.numpy)
    starts = np.arange(rows.start, rows.stop) * width + columns.start
    view.gather(starts, block.data.cast("B"), fetch)
    return block


class _Kept:
    """Blocks that the next slice will want again: at most ``limit`` bytes, for all threads.

    Every slice of a low-rank tensor takes all of `down`, and the slices come in order. So the
    blocks of a tensor that are in stay in, and what does not fit is read again: to replace one's
    own oldest block would leave, when one comes round to it, none. Blocks of other tensors make
    room. Blocks belong to the ``fetch`` that read them: another run may find other files.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._blocks: OrderedDict[Hashable, dict[Hashable, Array]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, owner: Hashable, key: Hashable) -> "Array | None":
        """A block, if it is there."""
        with self._lock:
            if owner not in self._blocks:
                return None
            self._blocks.move_to_end(owner)
            return self._blocks[owner].get(key)

    def put(self, owner: Hashable, key: Hashable, block: "Array") -> None:
        """Keep a block, if there is or can be made room for it; it is not to be changed."""
        with self._lock:
            mine = self._blocks.setdefault(owner, {})
            self._blocks.move_to_end(owner)
            while self._size + block.nbytes > self.limit and len(self._blocks) > 1:
                _, others = self._blocks.popitem(last=False)
                self._size -= sum(other.nbytes for other in others.values())
            if key not in mine and self._size + block.nbytes <= self.limit:
                mine[key] = block
                self._size += block.nbytes
