"""A view whose numbers are those of another view, times one number."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paramdelta.formats.view import Derived, Fetch
from paramdelta.storage.readahead import Run


@dataclass(frozen=True)
class Scaled(Derived):
    """``factor · view`` in float64, each product rounded."""

    factor: float

    @property
    def is_stored(self) -> bool:
        """Only what is scaled is."""
        return False

    @property
    def identity(self) -> list[Any]:
        """The view and the number."""
        return ["scaled", self.view.identity, self.factor]

    def scratch(self, size: int) -> int:
        """The stored run and the widened run."""
        return 2 * size + self.view.scratch(size)

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """Those of the view."""
        return self.view.runs(start, stop)

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Read, widen and multiply."""
        values = self.view.float64(start, stop, fetch)
        values *= self.factor
        into[: values.nbytes] = values.data.cast("B")
