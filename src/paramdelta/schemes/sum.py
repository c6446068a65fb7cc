"""The plain sum: ``new + Σ scale · (post − base)``, correctly rounded.

Cao et al., "ParamΔ for Direct Weight Mixing", ICLR 2025 (arXiv 2504.21023), equation 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from paramdelta.schemes.scheme import BLOCK, Scheme

if TYPE_CHECKING:
    from paramdelta.schemes.pair import Pair
    from paramdelta.schemes.scheme import Array, Floats


@dataclass(frozen=True)
class Sum(Scheme):
    """All Δs are added. Filters may drop elements of each."""

    name: ClassVar[str] = "sum"
    linear: ClassVar[bool] = True

    def reference(self, terms: "Floats", pairs: Sequence["Pair"]) -> "Floats":
        """The sum of the terms."""
        total: Floats = terms.sum(axis=0)
        return total

    def exact(self, terms: Sequence[Fraction], pairs: Sequence["Pair"]) -> Fraction:
        """The sum of the terms."""
        return sum(terms, Fraction(0))

    def combine(
        self,
        pairs: Sequence["Pair"],
        operands: Sequence["Array"],
        start: int,
        out: "Array",
        dtype: str,
        scratch: "Floats",
    ) -> bool:
        """See `Scheme.combine`. One Δ at scale 1 or −1 takes a single pass."""
        import numpy as np

        from paramdelta.arithmetic import kernels
        from paramdelta.arithmetic.finite import not_finite_mask
        from paramdelta.formats.view import float64
        from paramdelta.schemes import sparse

        if any(pair.filters for pair in pairs):
            return sparse.combine(pairs, operands, start, out, scratch)
        broken = None
        if len(pairs) == 1 and abs(pairs[0].scale) == 1:
            narrow = all(array.itemsize == 2 for array in (*operands, out))
            wide = np.float32(0) if narrow else np.float64(0)
            new, post, base = operands
            plus, minus = (post, base) if pairs[0].scale == 1 else (base, post)
            if kernels.mix_exact(new, plus, minus, out, wide):
                return True
            # Repeated, but only where it failed: the sign of a zero is mix_exact's own promise.
            broken, out, whole = not_finite_mask(out, dtype), np.empty_like(out), out
        finite = True
        for first in range(0, out.size, BLOCK):
            block = slice(first, min(first + BLOCK, out.size))
            size = block.stop - first
            high, low = scratch[0], scratch[1]
            kernels.begin(operands[0][block], high, low)
            for number, pair in enumerate(pairs):
                post, base = operands[1 + 2 * number], operands[2 + 2 * number]
                kernels.add(post[block], base[block], pair.scale, high, low)
            finite &= kernels.finish(high[:size], low[:size], out[block])
        if broken is not None:
            places = np.flatnonzero(broken)
            found, before = (float64(array[places], dtype) for array in (out, whole))
            # Infinities of the new base and of what is subtracted cancel only in mix_exact.
            places = places[~np.isnan(found) | np.isnan(before)]
            whole[places] = out[places]
        return finite

    def combine_packed(
        self, pairs: Sequence["Pair"], operands: Sequence[Any], out: "Array"
    ) -> bool:
        """One Δ of FP8 matrices, added out of their codes."""
        from paramdelta.arithmetic import kernels

        new, post, base = operands
        plus, minus = (post, base) if pairs[0].scale == 1 else (base, post)
        return bool(kernels.mix_codes(new, plus, minus, out))

    def formula(self, first: str, terms: Sequence[tuple[str, str]], minus: str) -> str:
        """``first + a − b``."""
        return " ".join([first, *(f"{sign} {term}" for sign, term in terms)])


SUM = Sum()
