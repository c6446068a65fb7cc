"""Schemes: how the Δs of one output tensor combine.

A new scheme is one class in one file and one call of `register`. `Scheme.reference` alone is
enough: the engine, the recipe's YAML, the lock, the model card and `verify` find the rest in the
base class.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from paramdelta.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from paramdelta.schemes.pair import Pair

    Array = npt.NDArray[Any]
    Floats = npt.NDArray[np.float64]

BLOCK = 1 << 14  # elements that schemes take at a time
SCRATCH = 6  # float64 arrays of `BLOCK` elements that a worker lends to `Scheme.combine`


@dataclass(frozen=True)
class Scheme(ABC):
    """How Δs combine: ``out = new + what the scheme makes of the Δs``, for one run of elements.

    Its fields are its parameters. Frozen and picklable; it knows nothing of tensors and files.
    """

    name: ClassVar[str] = ""  # the key in a recipe
    citation: ClassVar[str] = ""  # Markdown, for the model card
    linear: ClassVar[bool] = False  # the plain sum: operands may cancel out

    @property
    def density(self) -> float:
        """The share of each Δ that counts, by magnitude, where the Δ does not say."""
        return 1.0

    @abstractmethod
    def reference(self, terms: "Floats", pairs: Sequence["Pair"]) -> "Floats":
        """What is added to the new base.

        ``terms``: float64 (pairs, N): ``coefficient · (post − base)``, 0 where a filter drops the
        element. Returns float64 (N,). `verify` calls this, and `combine` unless it is overridden.
        """

    def exact(self, terms: Sequence[Fraction], pairs: Sequence["Pair"]) -> Fraction | None:
        """`reference` in exact arithmetic for one element; None if that is not defined."""
        return None

    def combine(
        self,
        pairs: Sequence["Pair"],
        operands: Sequence["Array"],
        start: int,
        out: "Array",
        dtype: str,
        scratch: "Floats",
    ) -> bool:
        """Fill ``out`` with the combination; True if every result is finite.

        ``operands``: the new base, then post and base of every pair, as `dtypes` views them, of one
        length. ``start``: number of the first element in the tensor. ``out``: as `dtypes` views
        ``dtype``. ``scratch``: float64 (`SCRATCH`, `BLOCK`), free to use.
        """
        from paramdelta.arithmetic import kernels
        from paramdelta.schemes.sparse import terms_of

        finite = True
        for first in range(0, out.size, BLOCK):
            block = slice(first, min(first + BLOCK, out.size))
            high, low = scratch[0, : block.stop - first], scratch[1, : block.stop - first]
            terms = terms_of(pairs, [operand[block] for operand in operands[1:]], start + first)
            kernels.begin(operands[0][block], high, low)
            high += self.reference(terms, pairs)
            finite &= kernels.finish(high, low, out[block])
        return finite

    def combine_packed(
        self, pairs: Sequence["Pair"], operands: Sequence[Any], out: "Array"
    ) -> bool:
        """`combine` of operands as `View.read_packed` gives them; False if that is not exact."""
        return False

    def times(self, factor: float) -> "Scheme | None":
        """The scheme whose result is multiplied; None if multiplying each Δ does that."""
        return None

    def formula(self, first: str, terms: Sequence[tuple[str, str]], minus: str) -> str:
        """The formula for people. ``terms``: sign and text of each Δ."""
        inside = ", ".join((sign if sign == minus else "") + term for sign, term in terms)
        return f"{first} + {self.name.upper()}({inside})" if terms else first

    @property
    def plain(self) -> dict[str, Any]:
        """The parameters as YAML and the lock hold them, without those at their default."""
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        }


_SCHEMES: dict[str, type[Scheme]] = {}


Registered = TypeVar("Registered", bound=type[Scheme])


def register(scheme: Registered) -> Registered:
    """Make a scheme known under its name; usable as a class decorator."""
    _SCHEMES[scheme.name] = scheme
    return scheme


def schemes() -> dict[str, type[Scheme]]:
    """All schemes that a recipe can name, by name."""
    from paramdelta.schemes import ties  # noqa: F401 - registers itself

    return dict(_SCHEMES)


Parameters = TypeVar("Parameters")


def from_plain(kind: type[Parameters], value: Any, what: str) -> Parameters:
    """A dataclass of parameters from itself or from its fields by name.

    Raises:
        UsageError: unknown or missing fields, or values that are not valid.
    """
    if isinstance(value, kind):
        return value
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if not isinstance(value, Mapping) or not needed <= set(value) <= set(known):
        raise UsageError(
            f"{what} cannot be read",
            code="invalid-parameter",
            expected="keys " + ", ".join(known),
            got=repr(value),
        )
    try:
        return kind(**value)
    except TypeError:
        raise UsageError(
            f"{what} cannot be read",
            code="invalid-parameter",
            expected="numbers: " + ", ".join(known),
            got=repr(value),
        ) from None
