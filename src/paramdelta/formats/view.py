"""Views: tensors of which any run of elements can be read.

A `Tensor` is stored as it is. The other views are composed: rows picked from several views, a
transposed view, a part of one. The engine reads through `View.read` and knows nothing else; a new
way to store weights is one more view, in its own file (`blockscaled`, `adapter`).
"""

import bisect
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from paramdelta.dtypes import DTYPES, DType
from paramdelta.storage.blob import Blob
from paramdelta.storage.readahead import Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from paramdelta.storage.reader import Reader

CacheType = TypeVar("CacheType")
Starts: TypeAlias = "int | npt.NDArray[np.int64]"
Fetch = Callable[["Tensor", Starts, memoryview], None]
"""``fetch(tensor, starts, into)`` fills ``into`` with stored bytes: from element ``starts``, or, if
that is an array, with parts of equal size, one from each of its elements.
"""


@dataclass(frozen=True)
class View(ABC):
    """A tensor whose elements can be read in any run, row-major.

    ``name``: for messages. ``dtype``: safetensors name of the elements as `read` gives them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def kind(self) -> DType:
        """Its row of the dtype table."""
        return DTYPES[self.dtype]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Elements of one row: the product of all axes but the first."""
        return math.prod(self.shape[1:])

    @property
    @abstractmethod
    def parts(self) -> "tuple[Tensor, ...]":
        """The stored tensors that it is made of."""

    @property
    def views(self) -> "tuple[View, ...]":
        """The views that it is made of; empty for a leaf."""
        return ()

    def with_views(self, views: "Sequence[View]") -> "View":
        """The same view of other views, as many as `views` has."""
        return self

    @property
    def is_stored(self) -> bool:
        """Whether its numbers are stored in its dtype, and not computed."""
        return all(view.is_stored for view in self.views)

    @property
    def is_quantized(self) -> bool:
        """Whether its numbers are codes with scales."""
        return False

    @property
    def packed(self) -> str:
        """The form in which `read_packed` gives runs that kernels add as they are stored; "" if
        there is none.
        """
        return ""

    def read_packed(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> Any:
        """A run of elements as it is stored; one byte of ``into`` for each."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes that are read to get all elements once."""
        return sum(part.nbytes for part in self.parts)

    def scratch(self, size: int) -> int:
        """Bytes that a thread holds at most, besides the ``size`` bytes that it reads."""
        return 0

    @property
    def caches(self) -> dict[str, int]:
        """Bytes that all threads of a run hold together, by kind of cache; see `cache_of`."""
        return {kind: size for view in self.views for kind, size in view.caches.items()}

    @property
    @abstractmethod
    def identity(self) -> list[Any]:
        """What determines its elements, as JSON; stored tensors stand as (blob, name)."""

    @abstractmethod
    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Fill ``into`` with the bytes of elements ``start`` to ``stop``; raises as ``fetch``."""

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The stored bytes that `read` will read; of views that mix them up, all with the first."""
        if start == 0:
            for part in self.parts:
                yield from part.runs(0, part.elements)

    def gather(self, starts: "npt.NDArray[np.int64]", into: memoryview, fetch: Fetch) -> None:
        """Fill ``into`` with runs of equal size, one from each element of ``starts``."""
        size = len(into) // len(starts)
        for number, start in enumerate(starts.tolist()):
            part = into[number * size : (number + 1) * size]
            self.read(start, start + size // self.kind.size, part, fetch)

    def array(self, start: int, stop: int, fetch: Fetch) -> "npt.NDArray[Any]":
        """A run of elements as a new array, viewed as `dtypes` says."""
        import numpy as np

        array = np.empty(stop - start, self.kind.numpy)
        self.read(start, stop, array.data.cast("B"), fetch)
        return array

    def float64(self, start: int, stop: int, fetch: Fetch) -> "npt.NDArray[np.float64]":
        """A run of elements as a new float64 array; exact."""
        return float64(self.array(start, stop, fetch), self.dtype)


_CACHES: "WeakKeyDictionary[Any, dict[str, Any]]" = WeakKeyDictionary()


def cache_of(fetch: Fetch, kind: str, make: Callable[[], CacheType]) -> CacheType:
    """A cache that all threads of a run share: every `fetch_from` one reader has the same.

    It goes when the reader goes.
    """
    caches = _CACHES.setdefault(getattr(fetch, "reader", fetch), {})
    if kind not in caches:
        caches.setdefault(kind, make())
    found: CacheType = caches[kind]
    return found


@dataclass(frozen=True)
class Tensor(View):
    """A stored tensor: ``size`` bytes from ``offset`` of a blob, row-major."""

    blob: Blob
    offset: int
    size: int

    @property
    def parts(self) -> "tuple[Tensor, ...]":
        """Itself."""
        return (self,)

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.size

    @property
    def identity(self) -> list[Any]:
        """Blob and name."""
        return [self.blob, self.name]

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """One."""
        size = self.kind.size
        yield self.blob, self.offset + start * size, self.offset + stop * size

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Fetch the run as it is stored."""
        fetch(self, start, into[: (stop - start) * self.kind.size])

    def gather(self, starts: "npt.NDArray[np.int64]", into: memoryview, fetch: Fetch) -> None:
        """Fetch all runs at once."""
        fetch(self, starts, into)


@dataclass(frozen=True)
class _FromReader:
    """A `Fetch` of one reader."""

    reader: "Reader"

    def __call__(self, tensor: Tensor, starts: Starts, into: memoryview) -> None:
        size = tensor.kind.size
        if isinstance(starts, int):
            self.reader.read(tensor.blob, tensor.offset + starts * size, into)
        else:
            among = range(tensor.offset, tensor.offset + tensor.size)
            self.reader.read_many(tensor.blob, tensor.offset + starts * size, into, among)


def fetch_from(reader: "Reader") -> Fetch:
    """A `Fetch` that reads stored tensors through a reader."""
    return _FromReader(reader)


def prefetch(views: "Iterable[tuple[View, int, int]]", fetch: Fetch) -> None:
    """Begin with reads of views that will follow, from element to element, all at once where
    requests take long.
    """
    reader = getattr(fetch, "reader", None)
    if reader is not None:
        reader.prefetch(run for view, start, stop in views for run in view.runs(start, stop))


@dataclass(frozen=True)
class Zeros(View):
    """Zeros: the base of a Δ that is stored as such."""

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """None."""
        return ()

    @property
    def is_stored(self) -> bool:
        """Nothing is."""
        return False

    @property
    def identity(self) -> list[Any]:
        """The kind alone."""
        return ["zeros"]

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Clear the bytes."""
        size = (stop - start) * self.kind.size
        into[:size] = bytes(size)


@dataclass(frozen=True)
class Derived(View):
    """Base class for views that wrap one view; stored parts and costs are those of that view."""

    view: View

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Those of the view."""
        return self.view.parts

    @property
    def views(self) -> tuple[View, ...]:
        """The view."""
        return (self.view,)

    def with_views(self, views: Sequence[View]) -> "Derived":
        """The same of another view."""
        return replace(self, view=views[0])

    @property
    def nbytes(self) -> int:
        """Those of the view."""
        return self.view.nbytes

    def scratch(self, size: int) -> int:
        """That of the view."""
        return self.view.scratch(size)


@dataclass(frozen=True)
class Part(Derived):
    """A run of the view's elements, from number ``first``, in another shape."""

    first: int

    @property
    def nbytes(self) -> int:
        """Its share of the bytes."""
        return self.view.nbytes * self.elements // max(1, self.view.elements)

    @property
    def identity(self) -> list[Any]:
        """The view, the position and the shape."""
        return ["part", self.view.identity, self.first, list(self.shape)]

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """Those of the view at the shifted position."""
        return self.view.runs(self.first + start, self.first + stop)

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Read from the view at the shifted position."""
        self.view.read(self.first + start, self.first + stop, into, fetch)

    def gather(self, starts: "npt.NDArray[np.int64]", into: memoryview, fetch: Fetch) -> None:
        """Read from the view at the shifted position."""
        self.view.gather(starts + self.first, into, fetch)


@dataclass(frozen=True)
class Wide(Derived):
    """The view in float64, so that views of different dtypes can be joined."""

    @property
    def identity(self) -> list[Any]:
        """That of the view: the values are the same."""
        return self.view.identity

    def scratch(self, size: int) -> int:
        """The stored run and the widened run."""
        return 2 * size + self.view.scratch(size)

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """Those of the view."""
        return self.view.runs(start, stop)

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Read and widen, without loss."""
        values = self.view.float64(start, stop, fetch)
        into[: values.nbytes] = values.data.cast("B")


ABSENT = -1  # the row map's entry for a row of zeros
MANY = 16  # at least this many runs of rows, which are on average
ALONE = 8  # at most this many rows long, are gathered in one call


@dataclass(frozen=True)
class Rows(View):
    """Rows of other views, each of the same dtype and row width.

    The rows of all views are numbered consecutively. ``rows``: for each row of this view such a
    number, or `ABSENT` for zeros, as the bytes of int32; None: all rows in order.
    """

    sources: tuple[View, ...]
    rows: bytes | None = None

    @classmethod
    def joined(cls, name: str, shape: tuple[int, ...], views: Sequence[View]) -> "Rows":
        """Views one after the other, in a shape with their last axis; in float64 if their dtypes
        differ.
        """
        if len({view.dtype for view in views}) > 1:
            views = [Wide(view.name, "F64", view.shape, view) for view in views]
        return cls(name, views[0].dtype, shape, tuple(views))

    @property
    def width(self) -> int:
        """Elements of one row of the views."""
        return self.sources[0].width

    @property
    def views(self) -> tuple[View, ...]:
        """All of them."""
        return self.sources

    def with_views(self, views: Sequence[View]) -> "Rows":
        """The same rows of other views."""
        return replace(self, sources=tuple(views))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Those of all views."""
        return tuple(part for view in self.sources for part in view.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are not absent."""
        if self.rows is None:
            return sum(view.nbytes for view in self.sources)
        present = self.elements // max(1, self.width) - int((self._map() == ABSENT).sum())
        size = self.sources[0].nbytes // max(1, self.sources[0].shape[0])
        return present * size

    @property
    def identity(self) -> list[Any]:
        """The views, and a digest of the row map."""
        import hashlib

        digest = hashlib.sha256(self.rows).hexdigest() if self.rows is not None else None
        return ["rows", [view.identity for view in self.sources], digest]

    def _map(self) -> "npt.NDArray[np.int32]":
        import numpy as np

        return np.frombuffer(self.rows or b"", np.int32)

    def scratch(self, size: int) -> int:
        """That of one view at a time, and the runs of rows."""
        if self.rows is None:
            return max(view.scratch(size) for view in self.sources)
        runs = 200 * (size // max(1, self.width * self.kind.size) + 2)
        return size + runs + max(view.scratch(size) for view in self.sources)

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """Those of the rows, in the order of the views."""
        width = self.width
        ends = list(itertools.accumulate(view.elements for view in self.sources))
        rows = self._runs(start // width, -(-stop // width)) if width else []
        for first, last, source in sorted(rows, key=lambda run: run[2]):
            if source == ABSENT:
                continue
            begin, end = max(start, first * width), min(stop, last * width)
            begin, end = begin + (source - first) * width, end + (source - first) * width
            at = bisect.bisect_right(ends, begin)
            while begin < end:
                offset = ends[at] - self.sources[at].elements
                here = min(end, ends[at])
                yield from self.sources[at].runs(begin - offset, here - offset)
                begin, at = here, at + 1

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Read run by run: consecutive rows of one view are one read. Mostly isolated rows are
        gathered.
        """
        width, size = self.width, self.kind.size
        first, last = start // width, -(-stop // width)
        is_whole = start == first * width and stop == last * width
        runs = self._runs(first, last)
        if is_whole and len(runs) >= MANY and last - first <= ALONE * len(runs):
            self._gather(first, last, into, fetch)
            return
        ends = list(itertools.accumulate(view.elements for view in self.sources))
        for first, last, source in runs:
            # The requested elements of the rows from `first` to `last`.
            begin, end = max(start, first * width), min(stop, last * width)
            target = into[(begin - start) * size : (end - start) * size]
            if source == ABSENT:
                target[:] = bytes(len(target))
                continue
            # The same elements, numbered in all views laid end to end.
            begin += (source - first) * width
            end += (source - first) * width
            at = bisect.bisect_right(ends, begin)
            while begin < end:
                offset = ends[at] - self.sources[at].elements
                here = min(end, ends[at])
                self.sources[at].read(begin - offset, here - offset, target, fetch)
                target = target[(here - begin) * size :]
                begin, at = here, at + 1

    def _runs(self, first: int, last: int) -> list[tuple[int, int, int]]:
        """``(row, stop, source row or ABSENT)`` of maximal runs from row ``first`` to ``last``."""
        if self.rows is None or first == last:
            return [(first, last, first)]
        import numpy as np

        rows = self._map()[first:last]
        follows = (np.diff(rows) == 1) & (rows[:-1] != ABSENT)
        follows |= (rows[1:] == ABSENT) & (rows[:-1] == ABSENT)
        begins = np.concatenate(([0], np.flatnonzero(~follows) + 1))
        ends = [*(begins[1:] + first).tolist(), last]
        return list(zip((begins + first).tolist(), ends, rows[begins].tolist(), strict=True))

    def _gather(self, first: int, last: int, into: memoryview, fetch: Fetch) -> None:
        """Read whole rows; all rows of one view in one call."""
        import numpy as np

        rows = self._map()[first:last]
        target = np.frombuffer(into, np.uint8).reshape(len(rows), -1)
        target[rows == ABSENT] = 0
        begin = 0
        for view in self.sources:
            end = begin + view.elements // self.width
            here = np.flatnonzero((begin <= rows) & (rows < end))
            if len(here):
                part = target if len(here) == len(rows) else np.empty_like(target[: len(here)])
                starts = (rows[here].astype(np.int64) - begin) * self.width
                view.gather(starts, part.data.cast("B"), fetch)
                if part is not target:
                    target[here] = part
            begin = end


@dataclass(frozen=True)
class Transposed(Derived):
    """A view of two axes with the axes exchanged."""

    @property
    def identity(self) -> list[Any]:
        """The view, transposed."""
        return ["transposed", self.view.identity]

    def scratch(self, size: int) -> int:
        """The block before it is transposed."""
        return size + self.view.scratch(size)

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Read a short run from each row of the view and transpose the block."""
        import numpy as np

        depth, width = self.view.shape
        kind = self.kind.numpy
        for rows, columns, target in rectangles(start, stop, depth, into, self.kind.size):
            block = np.empty((len(columns), len(rows)), kind)
            starts = np.arange(columns.start, columns.stop) * width + rows.start
            self.view.gather(starts, block.data.cast("B"), fetch)
            np.frombuffer(target, kind).reshape(len(rows), len(columns))[:] = block.T


def mapped(view: View, change: Callable[[View], View]) -> View:
    """The same composition of other leaves."""
    if not view.views:
        return change(view)
    return view.with_views([mapped(inner, change) for inner in view.views])


def leaves(view: View) -> Iterator[View]:
    """The views at the bottom of a composition."""
    if not view.views:
        yield view
    for inner in view.views:
        yield from leaves(inner)


def rectangles(
    start: int, stop: int, width: int, into: memoryview, size: int
) -> Iterator[tuple[range, range, memoryview]]:
    """A run of elements of a matrix as at most three rectangles: rows, columns, bytes of the
    target.

    ``width``: columns of the matrix. ``into``: the bytes for the run, ``size`` per element.
    """
    position = start
    while position < stop:
        row, column = divmod(position, width)
        rows = (stop - position) // width if column == 0 else 0
        end = position + rows * width if rows else min(stop, (row + 1) * width)
        columns = range(width) if rows else range(column, column + end - position)
        target = into[(position - start) * size : (end - start) * size]
        yield range(row, row + max(rows, 1)), columns, target
        position = end


def float64(array: "npt.NDArray[Any]", dtype: str) -> "npt.NDArray[np.float64]":
    """Elements of a mixable dtype, viewed as `dtypes` says, as float64; exact."""
    import numpy as np

    with np.errstate(invalid="ignore"):  # a signaling NaN becomes a quiet one
        if dtype == "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return (array.view(np.float16) if dtype == "F16" else array).astype(np.float64)
