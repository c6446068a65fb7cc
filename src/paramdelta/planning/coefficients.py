"""Which coefficient each tensor gets from a scale, and which rule decides it."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from paramdelta.errors import UsageError
from paramdelta.formats.buffers import is_buffer
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.presets import is_of, layer_of, stack_of
from paramdelta.planning.sources import Sources
from paramdelta.recipe import Recipe
from paramdelta.recipe.schedule import Rule, Schedule, Span

EXTREME = 2.0  # a scale beyond this is rarely meant


@dataclass(frozen=True)
class Coefficient:
    """The scale of one Δ for one tensor.

    ``rule``: the rule that gives it; None where the Δ has one scale for all tensors. ``layer``: the
    layer of the tensor, if the rule depends on it.
    """

    scale: float
    rule: Rule | None = None
    layer: int | None = None

    def __str__(self) -> str:
        """Which rule gives it, for people."""
        if self.rule is None:
            return "the scale of the Δ"
        layers = ""
        if self.layer is not None:
            span = _span(self.rule, self.layer)
            layers = f", layers {span.layers} at {self.layer}" if span else ""
        where = f" ({self.rule.where})" if self.rule.where else ""
        return f"rule {self.rule.subject}{layers}{where}"


@dataclass(frozen=True)
class Factors:
    """What the recipe says about one Δ in every output tensor, by name.

    ``scales``: how much of the Δ is added. ``densities``: which share of its elements counts.
    """

    scales: Mapping[str, Coefficient]
    densities: Mapping[str, Coefficient]


def choose_factors(recipe: Recipe, sources: Sources, findings: Findings) -> tuple[Factors, ...]:
    """The factors of every Δ of the recipe. Rules that have no effect become findings.

    Raises:
        UsageError: as `coefficients`.
    """
    axes = {name: len(view.shape) for name, view in sources.new.views.items()}
    weights = [
        name
        for name, view in sources.new.views.items()
        if view.kind.mixable and not is_buffer(view)
    ]
    chosen: list[Factors] = []
    for each, delta in zip(sources.lineages, recipe.deltas, strict=True):
        scales, idle = coefficients(delta.scale, axes, weights)
        densities, further = coefficients(recipe.density(each.number), axes, weights)
        chosen.append(Factors(scales, densities))
        if isinstance(delta.scale, float | int) and abs(delta.scale) > EXTREME:
            findings.add(
                Severity.WARNING,
                "scale-extreme",
                f"scale {delta.scale:g} adds the Δ {abs(delta.scale):g} times over; the paper uses "
                "scales up to 1",
                each.post,
            )
        for rule in (*idle, *further):
            where = f" ({rule.where})" if rule.where else ""
            findings.add(
                Severity.WARNING,
                "rule-idle",
                f"the rule {rule.subject}{where} has no effect: earlier rules apply to all of its "
                "tensors",
                each.post,
                remedy="move it before them, or leave it out",
            )
    return tuple(chosen)


def coefficient(scale: float | Schedule, name: str, axes: int) -> Coefficient | None:
    """The coefficient of a tensor with this name and number of axes; None if no rule applies."""
    if not isinstance(scale, Schedule):
        return Coefficient(scale)
    for rule in scale.rules:
        if not _is_for(rule, name, axes):
            continue
        if rule.value is not None:
            return Coefficient(rule.value, rule)
        layer = layer_of(name)
        span = _span(rule, layer) if layer is not None else None
        if span is not None and layer is not None:
            return Coefficient(span.at(layer), rule, layer)
    return None


def coefficients(
    scale: float | Schedule, axes: Mapping[str, int], weights: Iterable[str]
) -> tuple[dict[str, Coefficient], tuple[Rule, ...]]:
    """The coefficient of every tensor, and the rules that give none.

    ``axes``: number of axes of all output tensors, by name. ``weights``: those that are mixed, so
    that they need a coefficient. The others may have none.

    Raises:
        UsageError: a pattern that no name matches, layers that the model does not have, or weights
            without a rule.
    """
    if not isinstance(scale, Schedule):
        return dict.fromkeys(axes, Coefficient(scale)), ()
    for rule in scale.rules:
        _check(rule, axes)
    found = {}
    for name, number in axes.items():
        chosen = coefficient(scale, name, number)
        if chosen is not None:
            found[name] = chosen
    bare = [name for name in weights if name not in found]
    if bare:
        rest = f" and {len(bare) - 3} more" if len(bare) > 3 else ""
        raise UsageError(
            f"no rule of the scale applies to {', '.join(bare[:3])}{rest}",
            code="weights-without-rule",
            where=scale.rules[-1].where or None,
            expected="a bare number as the last entry, for everything else: 1.0, or 0 for no Δ",
        )
    used = {id(chosen.rule) for chosen in found.values()}
    return found, tuple(r for r in scale.rules if id(r) not in used and not r.is_rest)


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a glob matches. ``*`` matches dots too."""
    return [name for name in names if fnmatchcase(name, pattern)]


def near(pattern: str, names: Iterable[str]) -> str | None:
    """A suggestion for a glob that matches no name.

    The same glob with parts that occur in names, if that matches; else the nearest names.
    """
    names = list(names)
    parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
    pieces = re.split(r"([.*?]+)", pattern)
    for number, piece in enumerate(pieces):
        if number % 2 == 0 and piece and piece not in parts:
            pieces[number] = next(iter(difflib.get_close_matches(piece, parts, 1)), piece)
    meant = "".join(pieces)
    if matching(meant, names):
        return f"did you mean {meant!r}?"
    close = difflib.get_close_matches(pattern.replace("*", ""), names, 3, 0.3)
    return f"near names: {', '.join(close)}" if close else None


def _is_for(rule: Rule, name: str, axes: int) -> bool:
    if rule.preset is not None and not is_of(rule.preset, name, axes):
        return False
    return not rule.match or any(fnmatchcase(name, pattern) for pattern in rule.match)


def _span(rule: Rule, layer: int) -> Span | None:
    return next((span for span in rule.layers if span.first <= layer <= span.last), None)


def _check(rule: Rule, axes: Mapping[str, int]) -> None:
    """Raise UsageError if a rule names tensors or layers that the model does not have."""
    for pattern in rule.match:
        if not matching(pattern, axes):
            raise UsageError(
                f"no tensor of the output matches {pattern!r}",
                code="rule-matches-nothing",
                where=rule.where or None,
                expected="a glob for names of the new base, * for anything",
                remedy=near(pattern, axes),
            )
    mine = [name for name, number in axes.items() if _is_for(rule, name, number)]
    if not mine:
        raise UsageError(
            f"no tensor of the output belongs to {rule.subject}",
            code="rule-matches-nothing",
            where=rule.where or None,
            remedy="leave the rule out, or match by name",
        )
    if not rule.layers:
        return
    # The number of layers is the model's, even if the rule applies to some of them only.
    stacks = {stack_of(name) for name in mine} - {None}
    numbers = [layer_of(name) for name in axes if stack_of(name) in stacks]
    last = max((number for number in numbers if number is not None), default=None)
    for span in rule.layers:
        if last is None or span.last > last:
            raise UsageError(
                f"layers {span.layers} of {rule.subject}: there is no layer {span.last}",
                code="no-such-layer",
                where=span.where or rule.where or None,
                expected="layers 0 to " + str(last)
                if last is not None
                else "value; tensors of this name are in no numbered layer",
            )
