"""What to mix: a new base and one or more Δs."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, TypeAlias

from paramdelta.dtypes import parse_dtype
from paramdelta.errors import UsageError
from paramdelta.recipe import formula
from paramdelta.recipe.option import option, options
from paramdelta.recipe.schedule import Schedule
from paramdelta.schemes.dare import Dare
from paramdelta.schemes.filter import Filter
from paramdelta.schemes.scheme import Scheme, from_plain
from paramdelta.schemes.sum import SUM
from paramdelta.schemes.trim import Trim, check_density
from paramdelta.text import shown

Address: TypeAlias = str | os.PathLike[str]
"""A folder, a weight file, or a Hub id with an optional @revision."""

VOCABULARY = ("auto", "id", "token", "new-base")
HEAD = ("untie", "drop")


@dataclass(frozen=True)
class Delta:
    """One Δ: ``scale · (Θ_post − Θ_base)``.

    ``post`` and ``base`` are addresses. ``post`` may be a LoRA adapter, which needs no base unless
    it replaces whole tensors. ``delta`` replaces both: the address of a Δ that
    `paramdelta.extract` stored. Addresses are kept as text.

    ``scale``: α of the formula, any finite number, or a `Schedule`. ``dare``: drop a random share
    of the elements. ``density``: keep only this share of the elements, those of the largest
    magnitude; None: as the recipe's scheme says. Schedules and `Dare` may be given as YAML has
    them: a list of rules, the name of a preset, a mapping.

    Raises:
        UsageError: a value that is not valid.
    """

    post: Address = ""
    base: Address | None = None
    scale: float | Schedule = 1.0
    delta: Address | None = None
    dare: Dare | None = None
    density: float | Schedule | None = None

    def __post_init__(self) -> None:
        for name in ("post", "base", "delta"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        if bool(self.post) == bool(self.delta) or (self.delta and self.base):
            given = [name for name in ("post", "base", "delta") if getattr(self, name)]
            raise UsageError(
                "a delta is either stored, or the difference of post and base",
                code="invalid-delta-entry",
                expected="delta alone, or post and base",
                got=", ".join(given) or "none of them",
            )
        object.__setattr__(self, "scale", _scale(self.scale))
        if self.dare is not None:
            object.__setattr__(self, "dare", from_plain(Dare, self.dare, "dare"))
        if self.density is not None:
            density = _scale(self.density)
            for share in density.numbers if isinstance(density, Schedule) else [density]:
                check_density(share)
            object.__setattr__(self, "density", density)

    def times(self, factor: float) -> "Delta":
        """The same Δ with its scale, or every number of its schedule, multiplied."""
        if isinstance(self.scale, Schedule):
            return replace(self, scale=self.scale.times(factor))
        return replace(self, scale=self.scale * factor + 0.0)  # + 0.0: no negative zero

    @property
    def address(self) -> str:
        """Where the stored Δ is, or else post."""
        return str(self.delta or self.post)

    def to_dict(self) -> dict[str, Any]:
        """The Δ as YAML and the lock hold it."""
        plain = {
            "delta": self.delta,
            "post": self.post or None,
            "base": self.base,
            "scale": _plain(self.scale),
            "dare": self.dare.plain if self.dare is not None else None,
            "density": _plain(self.density),
        }
        return {name: value for name, value in plain.items() if value is not None}


@dataclass(frozen=True)
class Recipe:
    """``Θ'_base + Σ αᵢ (Θ_postᵢ − Θ_baseᵢ)``, and the choices that change the result.

    ``new_base``: an address, kept as text. ``deltas``: at least one. ``scheme``: how the Δs
    combine, by default their sum. In YAML its key is the scheme's name.

    ``dtype``: safetensors name of the output's dtype; None: each tensor keeps that of the new base,
    FP8 as BF16; "fp8-block": FP8 stays FP8, with new scales. ``allow``: codes of refused findings
    that are accepted. ``vocabulary``: how rows of tokens correspond, one of `VOCABULARY`.
    ``graft``: tokens that only the first post has and the output gets. ``take``: tokens whose rows
    the output takes from the first post. ``take_tensors``: globs, names or modules of post's
    tensors that the output takes as they are, such as a classifier's. ``maps``: rules for names of
    post and base, such as "model.* -> language_model.model.*", or "auto". ``head``: what happens to
    the output head of others where the new base's is tied, one of `HEAD`.

    Raises:
        UsageError: a value that is not valid.
    """

    new_base: Address
    deltas: Sequence[Delta]
    dtype: str | None = option(
        None,
        "Output dtype: auto (as the new base; FP8 as bf16), bf16, f16, f32, f64, or fp8-block "
        "(as the new base, its FP8 weights with new scales).",
        "TYPE",
        convert=lambda value: None if value is None else parse_dtype(value),
    )
    allow: Sequence[str] = option(
        (),
        "Accept a refused finding; repeatable.",
        "CODE",
        convert=lambda codes: tuple(sorted(set(codes))),
    )
    vocabulary: str = option(
        "auto",
        "How rows of tokens correspond: auto (by id where the tokenizers agree, else by token), "
        "id, token, new-base (its rows as they are).",
        "HOW",
        values=VOCABULARY,
    )
    graft: Sequence[str] = option((), "Add a token that only post has; repeatable.", "TOKEN")
    take: Sequence[str] = option(
        (), "Take post's row for a token that both have; repeatable.", "TOKEN"
    )
    take_tensors: Sequence[str] = option(
        (),
        "Take a tensor of post as it is, such as a classifier: a name, a module or a glob; "
        "repeatable.",
        "PATTERN",
        flag="take-tensor",
    )
    maps: Sequence[str] = option(
        (),
        "Rename tensors of post and base as in the new base: 'model.* -> "
        "language_model.model.*', or auto; repeatable.",
        "RULE",
        flag="map",
    )
    head: str = option(
        "untie",
        "If only others have an output head of their own: untie the new base's, or drop their Δ.",
        "HOW",
        values=HEAD,
    )
    scheme: Scheme = SUM

    def __post_init__(self) -> None:
        object.__setattr__(self, "new_base", os.fspath(self.new_base))
        object.__setattr__(self, "deltas", _deltas(self.deltas))
        for name, each in options(Recipe).items():
            object.__setattr__(self, name, each.checked(name, getattr(self, name)))
        if not self.deltas:
            raise UsageError(
                "a recipe needs at least one delta", code="missing-delta", expected="post and base"
            )

    def times(self, factor: float | Sequence[float]) -> "Recipe":
        """The same recipe with the scale of every Δ multiplied, or that of its scheme.

        ``factor``: one for all, or a sequence with one for each Δ.

        Raises:
            UsageError: not a finite number, or not as many as there are Δs.
        """
        if isinstance(factor, list | tuple):
            if len(factor) != len(self.deltas):
                raise UsageError(
                    "the recipe has another number of Δs",
                    code="scale-count",
                    expected=f"a number for each of {len(self.deltas)}, or one for all",
                    got=f"{len(factor)} numbers",
                )
            pairs = zip(self.deltas, map(_number, factor), strict=True)
            return replace(self, deltas=tuple(delta.times(each) for delta, each in pairs))
        number = _number(factor)
        scheme = self.scheme.times(number)
        if scheme is not None:
            return replace(self, scheme=scheme)
        return replace(self, deltas=tuple(delta.times(number) for delta in self.deltas))

    def density(self, number: int) -> float | Schedule:
        """The share of a Δ's elements that is kept by magnitude. ``number``: from 0."""
        own = self.deltas[number].density
        return own if own is not None else self.scheme.density

    def filters(self, number: int, tensor: str, density: float) -> tuple[Filter, ...]:
        """The filters of a Δ in an output tensor: it is trimmed first, then dropped.

        ``number``: from 0. ``density``: the share to keep by magnitude in this tensor.
        """
        trim = (Trim(density),) if density < 1 else ()
        dare = self.deltas[number].dare
        drop = (dare.resolved(number + 1, tensor),) if dare is not None else ()
        return (*trim, *drop)

    @property
    def formula(self) -> str:
        """The formula with this recipe's addresses, on one line."""
        return formula.with_addresses(self)

    @property
    def symbols(self) -> str:
        """The formula in the paper's symbols, on one line."""
        return formula.in_symbols(self)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as YAML and the lock hold it, without what is at its default."""
        plain: dict[str, Any] = {
            "new_base": self.new_base,
            "deltas": [delta.to_dict() for delta in self.deltas],
        }
        for name in options(Recipe):
            value = getattr(self, name)
            if value != Recipe.__dataclass_fields__[name].default:
                plain[name] = list(value) if isinstance(value, tuple) else value
        if self.scheme != SUM:
            plain[self.scheme.name] = self.scheme.plain
        return plain

    def to_yaml(self) -> str:
        """The recipe as a YAML document that `read_recipe` reads back."""
        from paramdelta.documents.yaml import to_yaml  # keeps yaml out of the start

        return to_yaml(self.to_dict())


def _deltas(given: Any) -> tuple[Delta, ...]:
    several = isinstance(given, Iterable) and not isinstance(given, str)
    found = tuple(given) if several else (given,)
    wrong = next((each for each in found if not isinstance(each, Delta)), None)
    if wrong is not None or not several:
        raise UsageError(
            "`deltas` is not a sequence of Delta",
            code="invalid-delta-entry",
            expected="[Delta(post, base)]",
            got=shown(repr(given if wrong is None else wrong)),
        )
    return found


def _number(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, Real) or not math.isfinite(given):
        raise UsageError(
            f"scale {given!r} is not a finite number", code="invalid-scale", expected="0.8, say"
        )
    return float(given)


def _scale(given: Any) -> float | Schedule:
    from paramdelta.recipe.reader import read_scale  # it makes recipes, so it imports this module

    return given if isinstance(given, Schedule) else read_scale(given)


def _plain(scale: float | Schedule | None) -> Any:
    return scale.plain if isinstance(scale, Schedule) else scale
