"""A pair: the two operands of one Δ in one tensor."""

from dataclasses import dataclass, replace
from functools import cached_property

from paramdelta.formats.view import View
from paramdelta.schemes.filter import Filter


@dataclass(frozen=True)
class Pair:
    """The operands of one Δ: ``scale · (post − base)``.

    ``number`` counts the Δs of the recipe from 0. Where a base cancels out, another operand takes
    its place (see `planning.cancellation`). A Δ that is stored as such (a LoRA adapter) is
    ``post``, and ``base`` is zeros. ``filters``: which elements count; empty: all.
    """

    number: int
    post: View
    base: View
    scale: float
    filters: tuple[Filter, ...] = ()

    @property
    def coefficient(self) -> float:
        """What an element that counts is multiplied by: the scale, unless a filter rescales."""
        coefficient = self.scale
        for filter_ in self.filters:
            coefficient = filter_.coefficient(coefficient)
        return coefficient

    @cached_property
    def needs_threshold(self) -> bool:
        """Whether a pass over the Δ has to find a threshold first."""
        return any(filter_.needs_threshold for filter_ in self.filters)

    def with_threshold(self, threshold: float) -> "Pair":
        """The same pair with the least magnitude that counts."""
        filters = (f.with_threshold(threshold) if f.needs_threshold else f for f in self.filters)
        return replace(self, filters=tuple(filters))
