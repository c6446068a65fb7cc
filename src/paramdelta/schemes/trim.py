"""Trimming: only the elements of a Δ with the largest magnitudes count."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from paramdelta.errors import UsageError
from paramdelta.schemes.filter import Filter

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Trim(Filter):
    """The share ``density`` of a tensor's elements counts, the largest by magnitude.

    All elements of the least magnitude that counts are kept. ``threshold``: that magnitude; None
    until `jobs.measure` has found it.
    """

    density: float
    threshold: float | None = None

    def keep(self, difference: "npt.NDArray[np.float64]", start: int) -> "npt.NDArray[np.bool_]":
        """See `Filter.keep`. NaN is kept."""
        import numpy as np

        assert self.threshold is not None
        kept: npt.NDArray[np.bool_] = ~(np.abs(difference) < self.threshold)
        return kept

    @property
    def needs_threshold(self) -> bool:
        """Always: also where it is known already, for `verify` finds it again."""
        return True

    def kept(self, elements: int) -> int:
        """How many of a tensor's elements count: at least one, if there is one."""
        return min(elements, max(1, int(self.density * elements)))

    def with_threshold(self, threshold: float) -> "Trim":
        """The same filter with the least magnitude that counts."""
        return replace(self, threshold=threshold)

    @property
    def plain(self) -> list[Any]:
        """See `Filter.plain`."""
        return ["trim", self.density]

    def __str__(self) -> str:
        return f"the largest {100 * self.density:g} % by magnitude"


def check_density(density: float, what: str = "density") -> None:
    """Raise UsageError unless a density is in (0, 1]."""
    if not 0 < density <= 1:
        raise UsageError(
            f"{what} {density} is not valid",
            code="invalid-parameter",
            expected="above 0 and at most 1: 0.2",
        )
