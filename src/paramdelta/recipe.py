"""What to mix: a new base and one or more Deltas. From Python, from options or from YAML."""

import difflib
import io
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from paramdelta.dtypes import parse_dtype
from paramdelta.errors import UsageError
from paramdelta.schedule import PRESETS, Rule, Schedule, Span, preset
from paramdelta.schemes.dare import Dare
from paramdelta.schemes.filter import Filter
from paramdelta.schemes.scheme import Scheme, from_plain, schemes
from paramdelta.schemes.sum import SUM
from paramdelta.schemes.trim import Trim, check_density

VOCABULARY = ("auto", "id", "token", "new-base")
HEAD = ("untie", "drop")


@dataclass(frozen=True)
class Delta:
    """One post-training to move: ``scale · (Θ_post − Θ_base)``.

    ``post`` and ``base`` are addresses (a folder, a weight file, a Hub id with an optional
    @revision). ``post`` may be a LoRA adapter, which is a Δ by itself; ``base`` may then be None.
    ``delta`` stands in the place of both: the address of a Δ that `paramdelta.extract` stored.
    ``scale`` is α of the formula: any finite number, or a `Schedule`, which may be given as YAML
    has it (a list of rules, or the name of a preset). ``dare``: drop a random share of its
    elements; ``density``: keep the share that is largest by magnitude, in the place of what
    `Recipe.ties` has; a number or a `Schedule`.
    """

    post: str = ""
    base: str | None = None
    scale: float | Schedule = 1.0
    delta: str | None = None
    dare: Dare | None = None
    density: float | Schedule | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "post", str(self.post))
        if self.dare is not None:
            object.__setattr__(self, "dare", from_plain(Dare, self.dare, "dare"))
        if self.density is not None:
            density = self.density
            if not isinstance(density, Schedule):
                density = read_scale(density)
                object.__setattr__(self, "density", density)
            for share in density.numbers if isinstance(density, Schedule) else [density]:
                check_density(share)
        for name in ("base", "delta"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(getattr(self, name)))
        if bool(self.post) == bool(self.delta) or (self.delta and self.base):
            raise UsageError(
                "a delta is either stored, or the difference of post and base",
                expected="delta alone, or post and base",
                got=", ".join(n for n in ("post", "base", "delta") if getattr(self, n))
                or "neither",
            )
        if not isinstance(self.scale, Schedule):
            object.__setattr__(self, "scale", read_scale(self.scale))

    def times(self, factor: float) -> "Delta":
        """The same Δ, its scale or every number of its schedule multiplied, each rounded once."""
        if isinstance(self.scale, Schedule):
            return replace(self, scale=self.scale.times(factor))
        return replace(self, scale=self.scale * factor + 0.0)  # + 0.0: no negative zero

    @property
    def address(self) -> str:
        """Where the Δ is, or post."""
        return self.delta or self.post


@dataclass(frozen=True)
class Recipe:
    """``Θ'_base + Σ αᵢ (Θ_postᵢ − Θ_baseᵢ)``, and the choices that change the result.

    ``dtype``: safetensors name of the output's dtype, or None (``auto``): each tensor keeps that of
    the new base, FP8 as BF16; or "fp8-block": FP8 stays FP8, with fresh scales.
    ``allow``: codes of refused findings that are accepted (see `planning.findings`).
    ``vocabulary``: how rows of tokens correspond, one of `VOCABULARY`; ``graft``: tokens that only
    the first post has and the output is to get; ``take``: tokens whose rows are the first post's
    outright. ``maps``: rules for names of post and base (`planning.names.parse_rule`), or "auto".
    ``head``: what becomes of an output head where the new base's is tied and another is not, one of
    `HEAD`. ``scheme``: how the Δs combine; the plain sum unless given.
    """

    new_base: str
    deltas: tuple[Delta, ...]
    dtype: str | None = None
    allow: tuple[str, ...] = ()
    vocabulary: str = "auto"
    graft: tuple[str, ...] = ()
    take: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    head: str = "untie"
    scheme: Scheme = SUM

    def __post_init__(self) -> None:
        object.__setattr__(self, "new_base", str(self.new_base))
        object.__setattr__(self, "deltas", tuple(self.deltas))
        object.__setattr__(self, "allow", tuple(sorted(set(self.allow))))
        for name in ("graft", "take", "maps"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, choices in (("vocabulary", VOCABULARY), ("head", HEAD)):
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"{name} {getattr(self, name)!r} is no choice",
                    expected="one of " + ", ".join(choices),
                )
        if self.dtype is not None:
            object.__setattr__(self, "dtype", parse_dtype(self.dtype))
        if not self.deltas:
            raise UsageError("a recipe needs at least one delta", expected="post and base")

    def times(self, factor: float) -> "Recipe":
        """The same recipe with every Δ's own scale multiplied: how much of all of it."""
        scheme = self.scheme.times(factor)
        if scheme is not None:
            return replace(self, scheme=scheme)
        return replace(self, deltas=tuple(delta.times(factor) for delta in self.deltas))

    @property
    def formula(self) -> str:
        """The formula with this recipe's addresses, on one line."""
        differences = [
            f"({d.address} - {d.base})" if d.base is not None else f"({d.address})"
            for d in self.deltas
        ]
        return self.written(self.new_base, differences, " · ", "-")

    @property
    def symbols(self) -> str:
        """The formula in the paper's symbols; s(name) for a scale that goes by tensors, Δ for an
        adapter or a stored Δ.
        """
        differences = []
        for number, delta in enumerate(self.deltas, 1):
            tag = str(number) if len(self.deltas) > 1 else ""
            apart = delta.base is None
            differences.append(f"Δ{tag}" if apart else f"(Θ_post{tag} − Θ_base{tag})")
        return self.written("Θ = Θ'_base", differences)

    def written(
        self, first: str, differences: Sequence[str], times: str = "·", minus: str = "−"
    ) -> str:
        """The formula, its Δ given as text and in parentheses where they are sums."""
        scales = [self.factor(number, times) for number in range(1, len(differences) + 1)]
        return self.sparsely(first, differences, scales, range(len(differences)), minus)

    def sparsely(
        self,
        first: str,
        differences: Iterable[str],
        scales: Iterable[tuple[int, str]],
        numbers: Iterable[int],
        minus: str = "−",
    ) -> str:
        """``first`` and the Δ of these numbers (from 0), with what is left out of them: of each its
        sign and its factor.
        """
        terms = []
        for what, (sign, factor), number in zip(differences, scales, numbers, strict=True):
            shown = what
            for name in self.thinned(number):
                shown = f"{name}{shown}" if shown.startswith("(") else f"{name}({shown})"
            terms.append((minus if sign < 0 else "+", factor + shown))
        return self.scheme.formula(first, terms, minus)

    def thinned(self, number: int) -> list[str]:
        """What is done to the Δ of this number (from 0) before it is scaled, for a formula."""
        delta, found = self.deltas[number], []
        density = self.density(number)
        if isinstance(density, Schedule):
            found.append("top%")
        elif density < 1:
            found.append(f"top{100 * density:g}%")
        if delta.dare is not None:
            found.append(f"DARE{delta.dare.drop:g}")
        return found

    def density(self, number: int) -> float | Schedule:
        """The share of the Δ of this number (from 0) that is kept by magnitude."""
        own = self.deltas[number].density
        if own is not None:
            return own
        return self.scheme.density

    def filters(self, number: int, tensor: str, density: float) -> tuple[Filter, ...]:
        """What decides which elements of a Δ (from 0) count in an output tensor."""
        dare = self.deltas[number].dare
        drop = () if dare is None else (dare.resolved(number + 1, tensor),)
        return (*drop, *((Trim(density),) if density < 1 else ()))

    def factor(self, number: int, times: str) -> tuple[int, str]:
        """Sign and size of a Δ's scale, as a factor in a formula. ``number`` counts from 1."""
        scale = self.deltas[number - 1].scale
        if isinstance(scale, Schedule):
            index = str(number).translate(_SUBSCRIPTS) if len(self.deltas) > 1 else ""
            return 1, f"s{index}(name){times}"
        return (-1 if scale < 0 else 1), "" if abs(scale) == 1 else f"{abs(scale):g}{times}"

    def to_dict(self) -> dict[str, Any]:
        """The recipe as YAML and the lock hold it; of the choices, what is not the default."""
        deltas = [
            {
                "delta": d.delta,
                "post": d.post or None,
                "base": d.base,
                "scale": d.scale.plain if isinstance(d.scale, Schedule) else d.scale,
                "dare": d.dare.plain if d.dare is not None else None,
                "density": d.density.plain if isinstance(d.density, Schedule) else d.density,
            }
            for d in self.deltas
        ]
        recipe: dict[str, Any] = {
            "new_base": self.new_base,
            "deltas": [{k: v for k, v in delta.items() if v is not None} for delta in deltas],
            "dtype": self.dtype or "auto",
            "allow": list(self.allow),
        }
        for name in ("vocabulary", "head"):
            if getattr(self, name) != Recipe.__dataclass_fields__[name].default:
                recipe[name] = getattr(self, name)
        for name in _LISTS[1:]:
            if getattr(self, name):
                recipe[name] = list(getattr(self, name))
        if self.scheme != SUM:
            recipe[self.scheme.name] = self.scheme.plain
        return recipe

    def to_yaml(self) -> str:
        """The recipe as a YAML document that `read_recipe` reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


_LISTS = ("allow", "graft", "take", "maps")
_RECIPE_KEYS = ("new_base", "deltas", "dtype", *_LISTS, "vocabulary", "head")
_DELTA_KEYS = ("post", "base", "delta", "scale", "dare", "density")
_RULE_KEYS = ("match", "preset", "value", "layers")
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_SPAN = re.compile(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?")


def read_scale(plain: Any) -> float | Schedule:
    """A scale as YAML and the lock hold it: a number, a preset's name, a rule or a list of them.

    Raises:
        UsageError: it cannot be understood.
    """
    if isinstance(plain, numbers.Real):
        if not math.isfinite(plain):
            raise UsageError(f"scale {plain} is not a finite number")
        return float(plain)
    try:
        node = yaml.SafeDumper(io.StringIO()).represent_data(plain)
    except yaml.YAMLError:
        raise UsageError("scale cannot be understood", got=repr(plain)) from None
    return _Reader(None).scale(node)


def recipe_from_dict(plain: Mapping[str, Any]) -> Recipe:
    """The recipe that `Recipe.to_dict` gave; raises UsageError."""
    try:
        node = yaml.SafeDumper(io.StringIO()).represent_data(dict(plain))
    except yaml.YAMLError:
        raise UsageError("the recipe cannot be read", got=repr(plain)[:200]) from None
    return _Reader(None).recipe(node)


def read_recipe(path: str | Path) -> Recipe:
    """Read a YAML recipe. Folders that it names are looked up beside the file first.

    Raises:
        UsageError: unreadable, not YAML, an unknown key (with line and the nearest valid one), a
            missing key or a value of the wrong kind.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("cannot read the recipe", where=str(path), got=str(error)) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError("the recipe is not YAML", where=where, got=problem) from None
    return _Reader(path).recipe(node)


_Made = TypeVar("_Made")


class _Reader:
    """Turns YAML nodes into a Recipe and knows the line of everything that it refuses."""

    def __init__(self, path: Path | None) -> None:
        self.path = path  # None where there are no lines to speak of

    def recipe(self, node: yaml.Node | None) -> Recipe:
        known = schemes()
        fields = self._mapping(node, (*_RECIPE_KEYS, *known), "a recipe")
        new_base = self._address(self._required(fields, "new_base", node))
        listed = self._required(fields, "deltas", node)
        if not isinstance(listed, yaml.SequenceNode) or not listed.value:
            raise self._error("deltas is not a list", listed, expected="- post: …\n    base: …")
        deltas = [self._delta(item) for item in listed.value]
        dtype = self._text(fields["dtype"]) if "dtype" in fields else "auto"
        lists: dict[str, Any] = {
            name: self._list(fields[name], name) for name in _LISTS if name in fields
        }
        choices: dict[str, Any] = {
            n: self._text(fields[n]) for n in ("vocabulary", "head") if n in fields
        }
        named = [name for name in known if name in fields]
        if len(named) > 1:
            raise self._error("a recipe has one scheme", fields[named[1]], got=" and ".join(named))
        if named:
            choices["scheme"] = self._parameters(known[named[0]], fields[named[0]])
        try:
            return Recipe(new_base, tuple(deltas), parse_dtype(dtype), **lists, **choices)
        except UsageError as error:
            key = next((name for name in choices if error.what.startswith(name)), "dtype")
            raise self._error(error.what, fields.get(key, node), error.expected) from None

    def _list(self, node: yaml.Node, name: str) -> tuple[str, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(f"{name} is not a list", node, expected="[one, another]")
        return tuple(self._text(item) for item in node.value)

    def _delta(self, node: yaml.Node) -> Delta:
        fields = self._mapping(node, _DELTA_KEYS, "a delta")
        scale = self.scale(fields["scale"]) if "scale" in fields else 1.0
        if "delta" in fields:
            for name in ("post", "base"):
                if name in fields:
                    raise self._error(f"delta and {name} exclude each other", fields[name])
            delta = Delta(scale=scale, delta=self._address(fields["delta"]))
        else:
            post = self._address(self._required(fields, "post", node))
            base = self._address(fields["base"]) if "base" in fields else None
            delta = Delta(post, base, scale)
        if "dare" in fields:
            delta = replace(delta, dare=self._parameters(Dare, fields["dare"]))
        if "density" in fields:
            density = self.scale(fields["density"])
            delta = self._valid(lambda: replace(delta, density=density), fields["density"])
        return delta

    # -- what is left of a Δ -----------------------------------------------------------------------

    def _parameters(self, kind: type[_Made], node: yaml.Node) -> _Made:
        """A dataclass of parameters from a mapping with its fields."""
        name = str(getattr(kind, "name", "") or kind.__name__.lower())
        known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
        given = self._mapping(node, known, name)
        values: dict[str, Any] = {}
        for key, value in given.items():
            values[key] = self._parameter(value, key, known[key].type)
        for key, field in known.items():
            if field.default is MISSING and key not in values:
                self._required(given, key, node)
        return self._valid(lambda: kind(**values), node)

    def _parameter(self, node: yaml.Node, name: str, kind: Any) -> Any:
        if kind in (bool, "bool"):
            text = self._text(node)
            if text not in ("true", "false"):
                raise self._error(f"{name} is neither true nor false", node, got=text)
            return text == "true"
        if kind in (int, "int"):
            return int(self._number(node, name, "a whole number", int))
        if kind in (float, "float"):
            return self._number(node, name, "a number such as 0.2")
        return self._text(node)

    def _valid(self, make: Callable[[], _Made], node: yaml.Node) -> _Made:
        try:
            return make()
        except UsageError as error:
            raise self._error(error.what, node, error.expected) from None

    # -- scales ------------------------------------------------------------------------------------

    def scale(self, node: yaml.Node) -> float | Schedule:
        """A number, a preset, a rule or a list of rules."""
        if isinstance(node, yaml.ScalarNode) and node.value in PRESETS:
            return preset(node.value, where=self._where(node) or "")
        if isinstance(node, yaml.ScalarNode):
            return self._number(node, "scale", f"0.8, say, or a preset: {', '.join(PRESETS)}")
        entries = node.value if isinstance(node, yaml.SequenceNode) else [node]
        rules = tuple(self._rule(entry) for entry in entries)
        if isinstance(node, yaml.MappingNode) and rules[0].preset and not rules[0].match:
            # A preset that stands alone: what it does not speak of gets nothing.
            rules = (*rules, Rule((), 0.0, where=rules[0].where))
        if not rules:
            raise self._error("scale is an empty list", node, "a number, at the least")
        return Schedule(rules)

    def _rule(self, node: yaml.Node) -> Rule:
        where = self._where(node) or ""
        if isinstance(node, yaml.ScalarNode) and node.value in PRESETS:
            return Rule((), 1.0, preset=node.value, where=where)
        if isinstance(node, yaml.ScalarNode):
            expected = f"a number for everything else, or a preset: {', '.join(PRESETS)}"
            return Rule((), self._number(node, "an entry of scale", expected), where=where)
        fields = self._mapping(node, _RULE_KEYS, "a rule")
        if not fields.keys() & {"match", "preset"}:
            raise self._error("a rule without match", node, 'match: "*.mlp.*", say, or preset')
        match = self._globs(fields["match"]) if "match" in fields else ()
        named = self._text(fields["preset"]) if "preset" in fields else None
        if named is not None and named not in PRESETS:
            close = difflib.get_close_matches(named, PRESETS, 1, 0.5)
            raise self._error(
                f"there is no preset {named!r}",
                fields["preset"],
                "one of " + ", ".join(PRESETS),
                remedy=f"did you mean {close[0]!r}?" if close else None,
            )
        if "value" in fields and "layers" in fields:
            raise self._error("a rule has either value or layers", fields["layers"])
        if "layers" in fields:
            return Rule(match, None, self._spans(fields["layers"]), named, where)
        if "value" in fields:
            value = self._number(fields["value"], "value", "0.8, say")
        elif named is not None:
            value = 1.0
        else:
            raise self._error("a rule without value or layers", node, "value: 0.8, say")
        return Rule(match, value, preset=named, where=where)

    def _globs(self, node: yaml.Node) -> tuple[str, ...]:
        if isinstance(node, yaml.SequenceNode) and node.value:
            return tuple(self._text(item) for item in node.value)
        return (self._text(node),)

    def _spans(self, node: yaml.Node) -> tuple[Span, ...]:
        if not isinstance(node, yaml.MappingNode) or not node.value:
            expected = "{0-15: 0.5, 16-31: [0.5, 1.0]}, say"
            raise self._error("layers is not a mapping", node, expected)
        spans: list[Span] = []
        for key, value in node.value:
            found = _SPAN.fullmatch(str(key.value)) if isinstance(key, yaml.ScalarNode) else None
            if found is None:
                expected = "a layer's number, or the first and the last: 0-15"
                raise self._error("these are no layers", key, expected, str(key.value))
            first, last = int(found[1]), int(found[2] or found[1])
            ends = value.value if isinstance(value, yaml.SequenceNode) else [value, value]
            if len(ends) != 2:
                expected = "one number, or [first, last]"
                raise self._error("the scale of these layers is not clear", value, expected)
            start, end = (self._number(item, "the scale of a layer", "0.8, say") for item in ends)
            span = Span(first, last, start, end, self._where(key) or "")
            for other in spans:
                if span.first <= other.last and other.first <= span.last:
                    raise self._error(f"the layers {other.layers} and {span.layers} overlap", key)
            spans.append(span)
        return tuple(spans)

    def _number(
        self, node: yaml.Node, what: str, expected: str, kind: Callable[[str], float] = float
    ) -> float:
        text = self._text(node)
        try:
            number = kind(text)
        except ValueError:
            raise self._error(f"{what} is not a number", node, expected, text) from None
        if not math.isfinite(number):
            raise self._error(f"{what} {text} is not a finite number", node, expected)
        return number

    def _mapping(
        self, node: yaml.Node | None, known: Iterable[str], what: str
    ) -> Mapping[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(f"{what} is a mapping", node, "keys " + ", ".join(known))
        fields: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = str(key_node.value)
            if key not in known:
                near = difflib.get_close_matches(key.replace("-", "_"), list(known), 1, 0.5)
                raise self._error(
                    f"unknown key {key!r} in {what}",
                    key_node,
                    "one of " + ", ".join(known),
                    remedy=f"did you mean {near[0]!r}?" if near else None,
                )
            if key in fields:
                raise self._error(f"key {key!r} stands twice", key_node)
            fields[key] = value
        return fields

    def _required(
        self, fields: Mapping[str, yaml.Node], key: str, parent: yaml.Node | None
    ) -> yaml.Node:
        if key not in fields:
            raise self._error(f"{key} is missing", parent)
        return fields[key]

    def _text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise self._error("expected one value", node)
        return str(node.value)

    def _address(self, node: yaml.Node) -> str:
        text = self._text(node)
        beside = self.path.parent / text if self.path is not None else Path(text)
        return str(beside) if beside.exists() else text

    def _error(
        self,
        what: str,
        node: yaml.Node | None,
        expected: str | None = None,
        got: str | None = None,
        remedy: str | None = None,
    ) -> UsageError:
        return UsageError(what, where=self._where(node), expected=expected, got=got, remedy=remedy)

    def _where(self, node: yaml.Node | None) -> str | None:
        if self.path is None or node is None or node.start_mark is None:
            return str(self.path) if self.path is not None else None
        return f"{self.path}, line {node.start_mark.line + 1}"
