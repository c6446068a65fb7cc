"""Patterns: the same matches as Python's re, in time that grows with the name only."""

import contextlib
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paramdelta.formats.patterns import PatternError, Patterns


def as_peft(patterns, name):
    """What PEFT's look-up gives, by Python's own expressions."""
    for number, pattern in enumerate(patterns):
        if re.match(rf"(.*\.)?({pattern})$", name):
            return number
    return None


ATOM = st.sampled_from(
    ["a", "b", ".", r"\.", r"\d", r"\w", r"\D", "[ab]", "[^a.]", "[a-c]", "1", "_", r"\-", "{", "}"]
)
PATTERN = st.recursive(
    ATOM,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        inner.map(lambda part: f"(?:{part})"),
        st.tuples(
            inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "*?", "??"])
        ).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        inner.map(lambda part: f"^{part}"),
        inner.map(lambda part: f"{part}$"),
    ),
    max_leaves=6,
)
NAME = st.text("ab.1_-\n{}", min_size=1, max_size=8)


@given(st.lists(PATTERN, min_size=1, max_size=3), NAME)
@example(["a|"], "b.")
@example(["^a"], "b.a")
@example(["a$b"], "ab")
@example(["{"], "{")
@example(["a.c"], "x.abc")
@example(["b", "a.b"], "a.b")
def test_the_same_as_re(patterns, name):
    """The first of some patterns that matches the end of a name is the one that PEFT finds."""
    if name.endswith("\n"):
        return  # where $ also matches before it, which no module's name needs
    assert Patterns(patterns).first(name) == as_peft(patterns, name)


@given(st.text(r"ab.*+?()[]{}|^$\d-,1", max_size=10), NAME)
def test_any_text_is_the_same_or_refused(pattern, name):
    """Whatever stands there is refused, or means what it means to re."""
    try:
        found = Patterns([pattern]).first(name)
    except PatternError:
        return
    if not name.endswith("\n"):
        assert found == as_peft([pattern], name)


@pytest.mark.parametrize(
    "pattern",
    ["(", "a)", "*", "a**", "[", r"\b", r"\1", "(?=a)", "(?i)a", "a{3,2}", "{2}", "(" * 99, "\\"],
)
def test_what_is_refused(pattern):
    """Broken expressions, and those that an automaton cannot match; the number is told."""
    with pytest.raises(PatternError) as error:
        Patterns(["a", pattern])
    assert error.value.pattern == pattern


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|aa)+b", ".*" * 40 + "b", "a?" * 100 + "a" * 100, "((a{30}){30})", "(.*a){9}b"],
)
def test_no_pattern_takes_long(pattern):
    """Expressions that take re forever."""
    start = time.process_time()
    with contextlib.suppress(PatternError):  # too much work
        assert Patterns([pattern]).first("x." + "a" * 1000) in (None, 0)
    assert time.process_time() - start < 2


def test_many_patterns_and_many_names():
    """A rank for each of 5,000 modules by its whole name, as EVA and AdaLoRA write it."""
    names = [
        f"model.layers.{i}.mlp.experts.{j}.{k}_proj"
        for i in range(20)
        for j in range(84)
        for k in ("up", "gate", "down")
    ]
    patterns = Patterns(names)
    assert [patterns.first(name) for name in names[::7]] == list(range(0, len(names), 7))
    assert patterns.first("model.layers.99.mlp.experts.0.up_proj") is None


def test_too_much_work_is_refused():
    """Names that keep many patterns alive end in an error and not in a wait."""
    patterns = Patterns([f".*a.*b.*{i}" for i in range(300)])
    names = (f"{number}ab" * 50 for number in range(100_000))
    with pytest.raises(PatternError, match="too much work"):
        list(map(patterns.first, names))
    with pytest.raises(PatternError, match="too long"):
        Patterns(["(a{1000}){1000}"])
