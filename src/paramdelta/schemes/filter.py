"""Filters: which elements of one Δ count. A filter is resolved for one Δ in one tensor."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Filter(ABC):
    """Decides for each element of a Δ whether it counts. Frozen and picklable.

    The decision depends on the element alone, so slices and threads leave no trace in the output.
    """

    @abstractmethod
    def keep(self, difference: "npt.NDArray[np.float64]", start: int) -> "npt.NDArray[np.bool_]":
        """Whether each element counts.

        ``difference``: float64 (N,), ``post − base``. ``start``: number of the first element in
        the tensor, row-major.
        """

    def coefficient(self, scale: float) -> float:
        """What the elements that count are multiplied by, in place of ``scale``."""
        return scale

    @property
    def needs_threshold(self) -> bool:
        """Whether a pass over the Δ has to find a threshold first; see `with_threshold`."""
        return False

    def kept(self, elements: int) -> int:
        """Of a filter that needs a threshold: how many of the largest magnitudes count."""
        return elements

    def with_threshold(self, threshold: float) -> "Filter":
        """The same filter with the least magnitude that counts."""
        return self

    @property
    @abstractmethod
    def plain(self) -> Any:
        """What determines it, as JSON, for the digest of a plan."""

    @abstractmethod
    def __str__(self) -> str:
        """What is left of the elements, such as ``10 % at random``."""
