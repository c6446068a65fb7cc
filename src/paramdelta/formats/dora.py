"""DoRA: a weight whose lines are scaled to trained lengths.

The weight is ``m / ‖W + Δ‖ · (W + Δ)``: W is the base's weight, Δ a low-rank product, and m the
trained length of each line (a row, or a column). It is no sum of W and something stored, because
the lengths ‖W + Δ‖ depend on the whole base.

Source: Liu et al., ICML 2024 (arXiv 2402.09353), section 4.1; PEFT 0.21, ``tuners/lora/dora.py``.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from paramdelta.formats.view import Fetch, Tensor, View, cache_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[np.float64]

BLOCK = 1 << 17  # elements that are read at a time to measure lines: 1 MiB as float64
KEPT = 8 << 20  # bytes of factors that stay in memory, for all threads together


@dataclass(frozen=True)
class Dora(View):
    """``m / ‖W + Δ‖ · (W + Δ)`` in float64, the norm along each line.

    ``base``: W. ``delta``: Δ, of the same shape (R, …). ``magnitude``: m, as many elements as there
    are lines. ``columns``: the lines are the columns of a matrix (R, C), C of them; otherwise the
    rows, R of them, each of all elements that follow the first axis.

    Squares are added in the order of the elements. So an element does not depend on the run in
    which it is read. All factors m / ‖W + Δ‖ of a tensor are computed when the first is needed,
    which reads W and Δ once more.
    """

    base: View
    delta: View
    magnitude: View
    columns: bool = False

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Those of the base, the Δ and the lengths."""
        return tuple(part for view in self.views for part in view.parts)

    @property
    def views(self) -> tuple[View, ...]:
        """The base, the Δ and the lengths."""
        return self.base, self.delta, self.magnitude

    def with_views(self, views: Sequence[View]) -> "Dora":
        """The same of other views."""
        base, delta, magnitude = views
        return replace(self, base=base, delta=delta, magnitude=magnitude)

    @property
    def identity(self) -> list[Any]:
        """All three, and the direction."""
        return ["dora", *(view.identity for view in self.views), self.columns]

    @property
    def nbytes(self) -> int:
        """Those of the base and the Δ twice, and of the lengths."""
        return 2 * (self.base.nbytes + self.delta.nbytes) + self.magnitude.nbytes

    def scratch(self, size: int) -> int:
        """A run of each operand, or a block of each while lines are measured."""
        most = max(size, 8 * max(BLOCK, self.width))
        return 4 * most + self.base.scratch(most) + self.delta.scratch(most)

    @property
    def caches(self) -> dict[str, int]:
        """The factors; those of the operands."""
        return {**super().caches, "dora": KEPT}

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Add the operands and scale the lines."""
        import numpy as np

        factors = cache_of(fetch, "dora", lambda: _Factors(KEPT)).of(self, fetch)
        values = self.base.float64(start, stop, fetch)
        values += self.delta.float64(start, stop, fetch)
        place = np.arange(start, stop)
        values *= factors[place % self.width if self.columns else place // self.width]
        into[: values.nbytes] = values.data.cast("B")

    def factors(self, fetch: Fetch) -> "Array":
        """``m / ‖W + Δ‖`` of every line: (R,), or (C,)."""
        import numpy as np

        from paramdelta.arithmetic import lowrank  # compiled code, not needed for planning

        height, width = self.shape[0], self.width
        squares = np.zeros(width if self.columns else height)
        step = max(1, BLOCK // width)
        for row in range(0, height, step):
            end = min(row + step, height)
            block = self.base.float64(row * width, end * width, fetch)
            block += self.delta.float64(row * width, end * width, fetch)
            here = squares if self.columns else squares[row:end]
            lowrank.add_squares(block.reshape(-1, width), here, self.columns)
        with np.errstate(divide="ignore", invalid="ignore"):
            lengths: Array = self.magnitude.float64(0, squares.size, fetch) / np.sqrt(squares)
        return lengths


class _Factors:
    """The factors of tensors that are being read: at most ``limit`` bytes, for all threads.

    Each tensor is measured by one thread; others that need it wait.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._found: OrderedDict[Dora, Array] = OrderedDict()
        self._locks: dict[Dora, threading.Lock] = {}
        self._lock = threading.Lock()

    def of(self, view: Dora, fetch: Fetch) -> "Array":
        """The factors of a tensor."""
        with self._lock:
            mine = self._locks.setdefault(view, threading.Lock())
        with mine:
            with self._lock:
                if view in self._found:
                    self._found.move_to_end(view)
                    return self._found[view]
            factors = view.factors(fetch)
            with self._lock:
                self._found[view] = factors
                while sum(each.nbytes for each in self._found.values()) > self.limit:
                    self._found.popitem(last=False)
            return factors
