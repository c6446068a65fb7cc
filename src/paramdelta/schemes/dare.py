"""DARE: drop a random share of a Δ and rescale the rest.

Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free
Lunch", ICML 2024 (arXiv 2311.03099), section 3.2.
"""

import hashlib
import math
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from paramdelta.errors import UsageError
from paramdelta.schemes.filter import Filter

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Dare:
    """DARE as a recipe has it: each element of a Δ is dropped with probability ``drop``, and those
    that stay are multiplied by ``1 / (1 − drop)``. ``seed`` chooses the random numbers.
    """

    citation: ClassVar[str] = (
        "DARE drops a random share of a Δ ([Yu et al., 2023](https://arxiv.org/abs/2311.03099))"
    )

    drop: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise UsageError(
                f"dare: drop {self.drop} is not valid",
                code="invalid-parameter",
                expected="from 0 to below 1, such as 0.9",
            )
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise UsageError(
                f"dare: seed {self.seed} is not valid",
                code="invalid-parameter",
                expected="a whole number from 0 to 2^64 − 1",
            )

    def resolved(self, number: int, tensor: str) -> "Drop":
        """The filter for the Δ of this number (from 1) in an output tensor."""
        return Drop(self.drop, hash_key(self.seed, number, tensor))

    @property
    def plain(self) -> dict[str, Any]:
        """The parameters as YAML and the lock hold them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Drop(Filter):
    """DARE for one Δ in one tensor: an element counts if its hash is at least `cutoff`.

    Hashes are SplitMix64 that starts at ``key`` (Steele, Lea and Flood, "Fast Splittable
    Pseudorandom Number Generators", OOPSLA 2014), one for each element in order.
    """

    drop: float
    key: int

    @cached_property
    def cutoff(self) -> int:
        """The least hash that stays: drop · 2⁶⁴, rounded up. 0.9 means nine tenths exactly."""
        return math.ceil(_decimal(self.drop) * 2**64)

    def keep(self, difference: "npt.NDArray[np.float64]", start: int) -> "npt.NDArray[np.bool_]":
        """See `Filter.keep`; the hashes are written out once more, for `verify`."""
        import numpy as np

        number = np.arange(start + 1, start + 1 + len(difference), dtype=np.uint64)
        z = np.uint64(self.key) + number * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        kept: npt.NDArray[np.bool_] = (z ^ z >> np.uint64(31)) >= np.uint64(self.cutoff)
        return kept

    def coefficient(self, scale: float) -> float:
        """``scale / (1 − drop)``, rounded to float64 once.

        Raises:
            UsageError: it is beyond float64.
        """
        if not self.drop:
            return scale
        try:
            return float(Fraction(scale) / (1 - _decimal(self.drop)))
        except OverflowError:
            raise UsageError(
                f"dare: scale {scale:g} / (1 − {self.drop:g}) is too large",
                code="invalid-scale",
                expected="a factor that float64 can hold",
            ) from None

    @property
    def plain(self) -> list[Any]:
        """See `Filter.plain`."""
        return ["drop", self.drop, self.key]

    def __str__(self) -> str:
        return f"{float(100 - 100 * _decimal(self.drop)):g} % at random"


def hash_key(seed: int, number: int, tensor: str) -> int:
    """Where the hashes of one Δ in one tensor start: 64 bits of SHA-256, little-endian.

    ``number``: the Δ's, from 1. ``tensor``: its name in the output.
    """
    text = f"{seed}/{number}/{tensor}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def _decimal(share: float) -> Fraction:
    """A share as it is written in decimal."""
    return Fraction(repr(float(share)))
