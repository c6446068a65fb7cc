"""How much of a Δ each tensor gets: rules; the first one that applies counts.

This module knows no tensors; `planning.coefficients` applies the rules to a checkpoint's names.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from paramdelta.errors import UsageError

# By name, the tensors that each preset adds the Δ to. `planning.presets` finds them by name.
PRESETS = {
    "linear-only": "the matrices of linear layers: attention, MLP, experts and their routers, "
    "projectors; no biases, norms, embeddings or output head",
    "skip-embeddings": "all but the embeddings (of tokens, positions and token types) and the "
    "output head",
    "attention-only": "everything inside attention but the norms of the residual stream",
    "mlp-only": "everything inside the MLP, dense or of experts, with routers and shared experts, "
    "but no norms",
    "experts-only": "routed experts; neither routers nor shared experts",
}


@dataclass(frozen=True)
class Span:
    """Layers ``first`` to ``last``, both included, and the scales of these two.

    Layers between them are interpolated linearly. ``where``: the place in the recipe, for messages.
    """

    first: int
    last: int
    start: float
    end: float
    where: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            object.__setattr__(self, name, _finite(getattr(self, name), self.where))
        if not 0 <= self.first <= self.last:
            raise UsageError(
                f"the layers {self.first}-{self.last} are reversed",
                code="invalid-layers",
                where=self.where or None,
                expected="the first and the last layer, both included, such as 0-15",
            )
        if self.first == self.last and self.start != self.end:
            raise UsageError(
                f"layer {self.first} alone cannot go from {self.start:g} to {self.end:g}",
                code="invalid-layers",
                where=self.where or None,
                expected="one number",
            )

    def at(self, layer: int) -> float:
        """The scale of a layer within the span: the exact interpolation, rounded once."""
        if self.start == self.end:
            return self.start
        first, last = Fraction(self.start), Fraction(self.end)
        return float(first + (last - first) * Fraction(layer - self.first, self.last - self.first))

    def times(self, factor: float) -> "Span":
        """The same layers with their scales multiplied."""
        return replace(self, start=_times(self.start, factor), end=_times(self.end, factor))

    @property
    def layers(self) -> str:
        """As in YAML: ``0-53``, or ``7``."""
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"

    @property
    def plain(self) -> float | list[float]:
        """As in YAML: one number, or first and last."""
        return self.start if self.start == self.end else [self.start, self.end]


@dataclass(frozen=True)
class Rule:
    """Some tensors, and the scale of their Δ.

    The rule applies to tensors whose output name matches one of the globs ``match`` and that belong
    to ``preset``, one of `PRESETS`. Without both it applies to all tensors. The scale is ``value``,
    or depends on the layer by ``layers``; then the rule applies to tensors of these layers only.
    ``where``: the place in the recipe, for messages.
    """

    match: str | Sequence[str] = ()
    value: float | None = None
    layers: Sequence[Span] = ()
    preset: str | None = None
    where: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        where = self.where or None
        globs = (self.match,) if isinstance(self.match, str) else tuple(self.match)
        object.__setattr__(self, "match", globs)
        object.__setattr__(self, "layers", tuple(sorted(self.layers, key=lambda s: s.first)))
        if (self.value is None) == (not self.layers):
            raise UsageError(
                "a rule has either value or layers",
                code="invalid-rule",
                where=where,
                expected="one of the two",
            )
        if self.value is not None:
            object.__setattr__(self, "value", _finite(self.value, self.where))
        if self.preset is not None and self.preset not in PRESETS:
            raise UsageError(
                f"there is no preset {self.preset!r}",
                code="unknown-preset",
                where=where,
                expected="one of " + ", ".join(PRESETS),
            )
        for one, other in zip(self.layers, self.layers[1:], strict=False):
            if other.first <= one.last:
                raise UsageError(
                    f"the layers {one.layers} and {other.layers} overlap",
                    code="invalid-layers",
                    where=other.where or where,
                    expected="every layer in one range",
                )

    def times(self, factor: float) -> "Rule":
        """The same tensors with their scales multiplied."""
        value = None if self.value is None else _times(self.value, factor)
        return replace(self, value=value, layers=tuple(s.times(factor) for s in self.layers))

    @property
    def is_rest(self) -> bool:
        """Whether it is a bare number, which applies to all tensors without an earlier rule."""
        return not self.match and self.preset is None and not self.layers

    @property
    def subject(self) -> str:
        """Which tensors it applies to, for people."""
        kinds = [*([self.preset] if self.preset else []), ", ".join(self.match)]
        return " & ".join(filter(None, kinds)) or "everything else"

    @property
    def plain(self) -> Any:
        """As in YAML."""
        if self.is_rest:
            return self.value
        rule: dict[str, Any] = {}
        if self.match:
            rule["match"] = self.match[0] if len(self.match) == 1 else list(self.match)
        if self.preset:
            rule["preset"] = self.preset
        if self.layers:
            rule["layers"] = {span.layers: span.plain for span in self.layers}
        else:
            rule["value"] = self.value
        return rule


@dataclass(frozen=True)
class Schedule:
    """Rules in order. The first rule that applies to a tensor gives its scale.

    A bare number can only be the last rule. Without one, the other rules must cover every weight.
    """

    rules: Sequence[Rule]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        if not self.rules:
            raise UsageError(
                "a schedule needs a rule", code="invalid-scale", expected="a number, at the least"
            )
        for rule in self.rules[:-1]:
            if rule.is_rest:
                raise UsageError(
                    "rules after a bare number are never reached",
                    code="invalid-rule",
                    where=rule.where or None,
                    expected="the number for everything else as the last entry",
                )

    def times(self, factor: float) -> "Schedule":
        """The same rules with every number multiplied."""
        return Schedule(tuple(rule.times(factor) for rule in self.rules))

    @property
    def plain(self) -> list[Any]:
        """As in YAML."""
        return [rule.plain for rule in self.rules]

    @property
    def numbers(self) -> list[float]:
        """All numbers in it."""
        spans = (s for rule in self.rules for span in rule.layers for s in (span.start, span.end))
        return [*(rule.value for rule in self.rules if rule.value is not None), *spans]

    @property
    def table(self) -> list[tuple[str, str, str]]:
        """Tensors, layers and scale of every rule and span, for people."""
        rows: list[tuple[str, str, str]] = []
        for rule in self.rules:
            if rule.value is not None:
                rows.append((rule.subject, "", f"{rule.value:g}"))
            for number, span in enumerate(rule.layers):
                several = span.start != span.end
                scale = f"{span.start:g} → {span.end:g}" if several else f"{span.start:g}"
                rows.append((rule.subject if number == 0 else "", span.layers, scale))
        return rows


def preset(name: str, scale: float = 1.0, where: str = "") -> Schedule:
    """A schedule with this scale for the tensors of a preset, and 0 for all others."""
    return Schedule((Rule((), scale, preset=name, where=where), Rule((), 0.0, where=where)))


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise UsageError(
            f"scale {value} is not a finite number", code="invalid-scale", where=where or None
        )
    return float(value)


def _times(scale: float, factor: float) -> float:
    return scale * factor + 0.0  # + 0.0: no negative zero, which would read as another recipe
