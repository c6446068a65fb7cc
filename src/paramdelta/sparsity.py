"""Which elements of a Δ count, as it is written: DARE and TIES, by the names of the papers."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, TypeVar

from paramdelta.errors import UsageError


@dataclass(frozen=True)
class Dare:
    """Drop And REscale (Yu et al. 2023, arXiv 2311.03099): of a Δ each element goes with
    probability ``drop``, and those that stay are multiplied by ``1 / (1 − drop)``.
    """

    drop: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise UsageError(
                f"dare: drop {self.drop} is no share that can be dropped",
                expected="from 0 to below 1, such as 0.9",
            )
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise UsageError(
                f"dare: seed {self.seed} is no seed", expected="a whole number from 0 to 2^64 − 1"
            )


@dataclass(frozen=True)
class Ties:
    """TRIM, ELECT SIGN & MERGE (Yadav et al. 2023, arXiv 2306.01708), over all Δ of a recipe.

    ``density``: the share of each Δ's elements, by magnitude, that is kept (the paper's k);
    ``scale``: λ, the factor of what is merged; ``normalize``: whether the elements that agree are
    averaged, as in the paper, or summed.
    """

    density: float = 0.2
    scale: float = 1.0
    normalize: bool = True

    def __post_init__(self) -> None:
        check_density(self.density, "ties: density")
        if not math.isfinite(self.scale):
            raise UsageError(f"ties: scale {self.scale} is not a finite number")
        if not isinstance(self.normalize, bool):
            raise UsageError(f"ties: normalize {self.normalize!r} is neither true nor false")


@dataclass(frozen=True)
class Sparsity:
    """What is left of one Δ in one tensor.

    ``drop`` and ``key``: DARE's share, and where the tensor's hashes begin (`hash_key`).
    ``density``: the share that is kept by magnitude. ``threshold``: the least magnitude that is
    kept; None until the engine has found it.
    """

    drop: float = 0.0
    key: int = 0
    density: float = 1.0
    threshold: float | None = None

    def __str__(self) -> str:
        """What is left, for people."""
        ways = [f"the largest {100 * self.density:g} % by magnitude"] if self.trims else []
        if self.drop:
            ways.append(f"{float(100 - 100 * _decimal(self.drop)):g} % at random")
        return "of its elements, " + " and of these ".join(ways)

    @property
    def trims(self) -> bool:
        """Whether elements go by their magnitude."""
        return self.density < 1

    @property
    def cutoff(self) -> int:
        """The least hash that stays: drop · 2⁶⁴, rounded up. 0.9 means nine tenths here."""
        return math.ceil(_decimal(self.drop) * 2**64)

    def rescaled(self, scale: float) -> float:
        """The coefficient of what stays: scale / (1 − drop), rounded to float64 once."""
        return float(Fraction(scale) / (1 - _decimal(self.drop))) if self.drop else scale

    def kept(self, elements: int) -> int:
        """How many of a tensor's elements the density keeps: at least one, if there is one."""
        return min(elements, max(1, int(self.density * elements)))

    @property
    def plain(self) -> list[Any]:
        """What determines it, for a digest."""
        return [self.drop, self.key, self.density]


def hash_key(seed: int, number: int, tensor: str) -> int:
    """Where the hashes of one Δ in one tensor begin: 64 bits of SHA-256, little-endian.

    ``number``: the Δ's, from 1; ``tensor``: its name in the output.
    """
    return int.from_bytes(
        hashlib.sha256(f"{seed}/{number}/{tensor}".encode()).digest()[:8], "little"
    )


def check_density(density: float, what: str = "density") -> None:
    """Raise UsageError unless it is a share that can be kept."""
    if not 0 < density <= 1:
        raise UsageError(f"{what} {density} is no share", expected="above 0, up to 1: 0.2, say")


Choice = TypeVar("Choice", Dare, Ties)


def chosen(kind: type[Choice], value: Any, what: str) -> Choice:
    """A `Dare` or `Ties` as Python, YAML or the lock gives it: itself, or its fields by name.

    Raises:
        UsageError: unknown fields, or values that cannot be meant.
    """
    if isinstance(value, kind):
        return value
    names = [field.name for field in fields(kind)]
    if not isinstance(value, Mapping) or not set(value) <= set(names):
        raise UsageError(
            f"{what} cannot be understood", expected="keys " + ", ".join(names), got=repr(value)
        )
    try:
        return kind(**value)
    except TypeError:
        raise UsageError(
            f"{what} cannot be understood", expected="numbers: " + ", ".join(names), got=repr(value)
        ) from None


def plain(choice: Dare | Ties) -> dict[str, Any]:
    """Its fields by name, as YAML and the lock have them; of Ties, what is not the default."""
    both = {field.name: (getattr(choice, field.name), field.default) for field in fields(choice)}
    is_ties = isinstance(choice, Ties)
    return {
        name: value
        for name, (value, default) in both.items()
        if not is_ties or name == "density" or value != default
    }


def _decimal(share: float) -> Fraction:
    """A share as it is written."""
    return Fraction(repr(float(share)))
