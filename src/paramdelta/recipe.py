"""What to mix: a new base and one or more Deltas. From Python, from options or from YAML."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paramdelta.dtypes import parse_dtype
from paramdelta.errors import UsageError

VOCABULARY = ("auto", "id", "token", "new-base")
HEAD = ("untie", "drop")


@dataclass(frozen=True)
class Delta:
    """One post-training to move: ``scale · (Θ_post − Θ_base)``.

    ``post`` and ``base`` are addresses (a folder, a weight file, a Hub id with an optional
    @revision). ``post`` may be a LoRA adapter, which is a Δ by itself; ``base`` may then be None.
    ``scale`` is α of the formula, any finite number.
    """

    post: str
    base: str | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "post", str(self.post))
        if self.base is not None:
            object.__setattr__(self, "base", str(self.base))
        if not math.isfinite(self.scale):
            raise UsageError(f"scale {self.scale} is not a finite number")
        object.__setattr__(self, "scale", float(self.scale))


@dataclass(frozen=True)
class Recipe:
    """``Θ'_base + Σ αᵢ (Θ_postᵢ − Θ_baseᵢ)``, and the choices that change the result.

    ``dtype``: safetensors name of the output's dtype, or None (``auto``): each tensor keeps that of
    the new base. ``allow``: codes of refused findings that are accepted (see `planning.findings`).
    ``vocabulary``: how rows of tokens correspond, one of `VOCABULARY`; ``graft``: tokens that only
    the first post has and the output is to get; ``take``: tokens whose rows are the first post's
    outright. ``maps``: rules for names of post and base (`planning.names.parse_rule`), or "auto".
    ``head``: what becomes of an output head where the new base's is tied and another is not, one of
    `HEAD`.
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

    @property
    def formula(self) -> str:
        """The formula with this recipe's addresses, on one line."""
        terms = [self.new_base]
        for delta in self.deltas:
            sign = "-" if delta.scale < 0 else "+"
            scale = "" if abs(delta.scale) == 1 else f"{abs(delta.scale):g} · "
            minus = f" - {delta.base}" if delta.base is not None else ""
            terms.append(f"{sign} {scale}({delta.post}{minus})")
        return " ".join(terms)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as YAML and the lock hold it; of the choices, what is not the default."""
        deltas = [{"post": d.post, "base": d.base, "scale": d.scale} for d in self.deltas]
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
        return recipe

    def to_yaml(self) -> str:
        """The recipe as a YAML document that `read_recipe` reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


_LISTS = ("allow", "graft", "take", "maps")
_RECIPE_KEYS = ("new_base", "deltas", "dtype", *_LISTS, "vocabulary", "head")
_DELTA_KEYS = ("post", "base", "scale")


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


class _Reader:
    """Turns YAML nodes into a Recipe and knows the line of everything that it refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def recipe(self, node: yaml.Node | None) -> Recipe:
        fields = self._mapping(node, _RECIPE_KEYS, "a recipe")
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
        post = self._address(self._required(fields, "post", node))
        base = self._address(fields["base"]) if "base" in fields else None
        scale = 1.0
        if "scale" in fields:
            text = self._text(fields["scale"])
            try:
                scale = float(text)
            except ValueError:
                raise self._error(
                    "scale is not a number", fields["scale"], "0.8, say", text
                ) from None
        return Delta(post, base, scale)

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
        beside = self.path.parent / text
        return str(beside) if beside.exists() else text

    def _error(
        self,
        what: str,
        node: yaml.Node | None,
        expected: str | None = None,
        got: str | None = None,
        remedy: str | None = None,
    ) -> UsageError:
        line = f", line {node.start_mark.line + 1}" if node is not None else ""
        return UsageError(
            what, where=f"{self.path}{line}", expected=expected, got=got, remedy=remedy
        )
