"""TIES: trim each Δ, elect a sign for every element, merge what agrees.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023 (arXiv
2306.01708), section 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from paramdelta.errors import UsageError
from paramdelta.schemes.scheme import Scheme, register
from paramdelta.schemes.trim import check_density

if TYPE_CHECKING:
    from paramdelta.schemes.pair import Pair
    from paramdelta.schemes.scheme import Array, Floats


@register
@dataclass(frozen=True)
class Ties(Scheme):
    """TIES over all Δs of a recipe.

    ``density``: the share of each Δ's elements, by magnitude, that is kept (the paper's k).
    ``scale``: λ, the factor of what is merged. ``normalize``: whether the elements that agree are
    averaged, as in the paper, or summed.
    """

    name: ClassVar[str] = "ties"
    citation: ClassVar[str] = (
        "TIES keeps the elements of the largest magnitude and merges those of the elected sign "
        "([Yadav et al., 2023](https://arxiv.org/abs/2306.01708))"
    )

    density: float = 0.2
    scale: float = 1.0
    normalize: bool = True

    def __post_init__(self) -> None:
        check_density(self.density, "ties: density")
        if not math.isfinite(self.scale):
            raise UsageError(
                f"ties: scale {self.scale} is not a finite number", code="invalid-parameter"
            )
        if not isinstance(self.normalize, bool):
            raise UsageError(
                f"ties: normalize {self.normalize!r} is neither true nor false",
                code="invalid-parameter",
            )

    def reference(self, terms: "Floats", pairs: Sequence["Pair"]) -> "Floats":
        """See `Scheme.reference`. Where both signs weigh the same, none is elected."""
        import numpy as np

        total = terms.sum(axis=0)
        agree = (terms != 0) & (np.sign(terms) == np.sign(total))
        merged = np.where(agree, terms, 0.0).sum(axis=0)
        if self.normalize:
            weights = np.array([[abs(pair.scale)] for pair in pairs])
            merged /= np.maximum((weights * agree).sum(axis=0), np.finfo(np.float64).tiny)
        result: Floats = self.scale * np.where(np.isnan(total), np.nan, merged)
        return result

    def exact(self, terms: Sequence[Fraction], pairs: Sequence["Pair"]) -> Fraction:
        """See `Scheme.exact`."""
        mass = sum(terms, Fraction(0))
        agree = [(t, abs(Fraction(p.scale))) for t, p in zip(terms, pairs, strict=True)]
        agree = [(term, weight) for term, weight in agree if term * mass > 0]
        merged = sum((term for term, _ in agree), Fraction(0))
        if agree and self.normalize:
            merged /= sum(weight for _, weight in agree)
        return Fraction(self.scale) * merged

    def combine(
        self,
        pairs: Sequence["Pair"],
        operands: Sequence["Array"],
        start: int,
        out: "Array",
        dtype: str,
        scratch: "Floats",
    ) -> bool:
        """See `Scheme.combine`."""
        from paramdelta.schemes import sparse

        election = True, self.normalize, self.scale
        return sparse.combine(pairs, operands, start, out, scratch, election)

    def times(self, factor: float) -> "Ties":
        """λ is multiplied: TIES averages, so the scales of the Δs only weigh them."""
        return replace(self, scale=self.scale * factor)

    def formula(self, first: str, terms: Sequence[tuple[str, str]], minus: str) -> str:
        """``first + λ·TIES(a, −b)``."""
        if not terms:
            return first
        inside = ", ".join((minus if sign == minus else "") + term for sign, term in terms)
        factor = "" if abs(self.scale) == 1 else f"{abs(self.scale):g}·"
        return f"{first} {minus if self.scale < 0 else '+'} {factor}TIES({inside})"

    @property
    def plain(self) -> dict[str, Any]:
        """As `Scheme.plain`; the density is always given."""
        return {"density": self.density, **super().plain}
