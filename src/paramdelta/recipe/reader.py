"""Recipes, Δs and scales from YAML, or from the same form in Python."""

import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from paramdelta.errors import UsageError, did_you_mean
from paramdelta.recipe.model import Address, Delta, Recipe
from paramdelta.recipe.option import options
from paramdelta.recipe.schedule import PRESETS, Rule, Schedule, Span, preset
from paramdelta.recipe.yaml import Node, PlainNode, read_document
from paramdelta.schemes.dare import Dare
from paramdelta.schemes.scheme import schemes

RECIPE_KEYS = ("new_base", "deltas", *options(Recipe))  # and the names of schemes
DELTA_KEYS = tuple(field.name for field in fields(Delta))
RULE_KEYS = ("match", "preset", "value", "layers")

_SPAN = re.compile(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?")
Made = TypeVar("Made")


def read_recipe(path: Address) -> Recipe:
    """Read a YAML recipe. Folders that it names are looked up beside the file first.

    Raises:
        UsageError: unreadable, not YAML, an unknown key (with line and the nearest valid one), a
            missing key or a value of the wrong kind.
    """
    return _recipe(read_document(Path(path)))


def recipe_from_dict(plain: Mapping[str, Any]) -> Recipe:
    """The recipe that `Recipe.to_dict` gave; raises UsageError."""
    return _recipe(PlainNode(plain))


def read_scale(plain: Any) -> float | Schedule:
    """A scale as YAML has it: a number, a preset's name, a rule or a list of them.

    Raises:
        UsageError: it cannot be understood.
    """
    if isinstance(plain, numbers.Real):
        if not math.isfinite(plain):
            raise UsageError(f"scale {plain} is not a finite number", code="invalid-scale")
        return float(plain)
    return _scale(PlainNode(plain))


def _recipe(node: Node) -> Recipe:
    """The recipe of a document, or of the lock that `mix` wrote."""
    known = schemes()
    lock = {key.scalar: value for key, value in node.pairs or ()}
    if "lock_version" in lock and "recipe" in lock:
        node = lock["recipe"]
    if any(key.scalar == "merge_method" for key, _ in node.pairs or ()):
        raise node.error(
            "this is a configuration of mergekit, not a recipe",
            "a recipe with new_base and deltas",
            code="mergekit-configuration",
            remedy="convert it with paramdelta recipe import",
        )
    given = node.fields((*RECIPE_KEYS, *known), "a recipe")
    new_base = _address(node.required(given, "new_base"))
    listed = node.required(given, "deltas")
    if not listed.items:
        raise listed.error(
            "deltas is not a list", "- post: …\n    base: …", code="invalid-recipe-value"
        )
    deltas = [_delta(item) for item in listed.items]
    choices: dict[str, Any] = {}
    for name, option in options(Recipe).items():
        if name in given:
            value = given[name]
            text = value.texts(name) if option.several else value.text()
            choices[name] = value.valid(lambda: option.checked(name, text))  # noqa: B023 - at once
    named = [name for name in known if name in given]
    if len(named) > 1:
        raise given[named[1]].error(
            "a recipe has one scheme", code="several-schemes", got=" and ".join(named)
        )
    for name in named:
        choices["scheme"] = _parameters(known[name], given[name], name)
    return node.valid(lambda: Recipe(new_base, deltas, **choices))


def _delta(node: Node) -> Delta:
    given = node.fields(DELTA_KEYS, "a delta")
    scale = _scale(given["scale"]) if "scale" in given else 1.0
    if "delta" in given:
        for name in ("post", "base"):
            if name in given:
                raise given[name].error(
                    f"delta and {name} exclude each other", code="invalid-delta-entry"
                )
        delta = Delta(scale=scale, delta=_address(given["delta"]))
    else:
        post = _address(node.required(given, "post"))
        base = _address(given["base"]) if "base" in given else None
        delta = Delta(post, base, scale)
    if "dare" in given:
        delta = replace(delta, dare=_parameters(Dare, given["dare"], "dare"))
    if "density" in given:
        density = _scale(given["density"])
        delta = given["density"].valid(lambda: replace(delta, density=density))
    return delta


def _address(node: Node) -> str:
    return node.beside(node.text())


def _parameters(kind: type[Made], node: Node, name: str) -> Made:
    """A dataclass of parameters from a mapping with its fields. ``name``: for messages."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    given = node.fields(known, name)
    values = {key: _parameter(value, key, known[key].type) for key, value in given.items()}
    for key, field in known.items():
        if field.default is MISSING and field.default_factory is MISSING:
            node.required(given, key)
    return node.valid(lambda: kind(**values))


def _parameter(node: Node, name: str, kind: Any) -> Any:
    """A parameter of the type that its field is annotated with."""
    if kind in (bool, "bool"):
        return node.flag(name)
    if kind in (int, "int"):
        return int(node.number(name, "a whole number", int))
    if kind in (float, "float"):
        return node.number(name, "a number such as 0.2")
    return node.text()


def _scale(node: Node) -> float | Schedule:
    """A number, a preset, a rule or a list of rules."""
    if node.scalar is not None:
        if node.scalar in PRESETS:
            return preset(node.scalar, where=node.where or "")
        return node.number("scale", f"0.8, say, or a preset: {', '.join(PRESETS)}")
    if node.pairs is not None:
        rule = _rule(node)
        if rule.preset and not rule.match:  # a preset that stands alone
            return Schedule((rule, Rule((), 0.0, where=rule.where)))
        return Schedule((rule,))
    if node.items is None:
        raise node.error(
            "scale cannot be understood",
            "a number, a preset or a list of rules",
            code="invalid-recipe-value",
        )
    if not node.items:
        raise node.error("scale is an empty list", "a number, at the least", code="invalid-scale")
    return Schedule(tuple(_rule(item) for item in node.items))


def _rule(node: Node) -> Rule:
    where = node.where or ""
    if node.scalar is not None:
        if node.scalar in PRESETS:
            return Rule((), 1.0, preset=node.scalar, where=where)
        expected = f"a number for everything else, or a preset: {', '.join(PRESETS)}"
        return Rule((), node.number("an entry of scale", expected), where=where)
    given = node.fields(RULE_KEYS, "a rule")
    if not given.keys() & {"match", "preset"}:
        raise node.error(
            "a rule without match", 'match: "*.mlp.*", say, or preset', code="invalid-rule"
        )
    match = _globs(given["match"]) if "match" in given else ()
    named = given["preset"].text() if "preset" in given else None
    if named is not None and named not in PRESETS:
        raise given["preset"].error(
            f"there is no preset {named!r}",
            "one of " + ", ".join(PRESETS),
            code="unknown-preset",
            remedy=did_you_mean(named, PRESETS),
        )
    if "value" in given and "layers" in given:
        raise given["layers"].error("a rule has either value or layers", code="invalid-rule")
    if "layers" in given:
        return Rule(match, None, _spans(given["layers"]), named, where)
    if "value" not in given and named is None:
        raise node.error("a rule without value or layers", "value: 0.8, say", code="invalid-rule")
    value = given["value"].number("value", "0.8, say") if "value" in given else 1.0
    return Rule(match, value, preset=named, where=where)


def _globs(node: Node) -> tuple[str, ...]:
    if node.items:
        return tuple(item.text() for item in node.items)
    return (node.text(),)


def _spans(node: Node) -> tuple[Span, ...]:
    if not node.pairs:
        raise node.error(
            "layers is not a mapping", "{0-15: 0.5, 16-31: [0.5, 1.0]}, say", code="invalid-layers"
        )
    spans: list[Span] = []
    for key, value in node.pairs:
        found = _SPAN.fullmatch(key.scalar) if key.scalar is not None else None
        if found is None:
            expected = "a layer's number, or the first and the last: 0-15"
            raise key.error("these are no layers", expected, key.scalar, code="invalid-layers")
        first, last = int(found[1]), int(found[2] or found[1])
        ends = value.items if value.items is not None else [value, value]
        if len(ends) != 2:
            expected = "one number, or [first, last]"
            raise value.error(
                "the scale of these layers is not clear", expected, code="invalid-layers"
            )
        start, end = (item.number("the scale of a layer", "0.8, say") for item in ends)
        span = Span(first, last, start, end, key.where or "")
        for other in spans:
            if span.first <= other.last and other.first <= span.last:
                raise key.error(
                    f"the layers {other.layers} and {span.layers} overlap", code="invalid-layers"
                )
        spans.append(span)
    return tuple(spans)
