"""Scales that go by tensors, as they are written: rules, layers, round trips, refusals."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import Delta, Recipe, UsageError, read_recipe
from paramdelta.recipe import read_scale
from paramdelta.recipe.schedule import PRESETS, Rule, Schedule, Span, preset

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def spans(draw):
    """Ranges of layers that follow each other, with gaps or without."""
    edges = sorted(draw(st.sets(st.integers(0, 200), min_size=2, max_size=8)))
    found = []
    for first, following in zip(edges[::2], edges[1::2], strict=False):
        start = draw(NUMBERS)
        end = start if first == following - 1 else draw(NUMBERS)
        found.append(Span(first, following - 1, start, end))
    return tuple(found)


@st.composite
def rules(draw):
    """A rule with a pattern, a preset or both; a value or layers."""
    globs = st.text("ab.*_[]0", min_size=1, max_size=8)
    match = tuple(draw(st.lists(globs, max_size=3)))
    named = draw(st.sampled_from(sorted(PRESETS))) if not match or draw(st.booleans()) else None
    if draw(st.booleans()):
        return Rule(match, draw(NUMBERS), preset=named)
    return Rule(match, None, draw(spans()), named)


@st.composite
def schedules(draw):
    """Any schedule, with a number for everything else or without."""
    found = draw(st.lists(rules(), min_size=1, max_size=4))
    rest = [Rule((), draw(NUMBERS))] if draw(st.booleans()) else []
    return Schedule((*found, *rest))


@given(schedules())
def test_yaml_lock_and_back(tmp_path_factory, schedule):
    """Any schedule is read back as it was from YAML and from JSON."""
    recipe = Recipe("org/n", (Delta("org/p", "org/b", schedule),))
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(path) == recipe
    assert read_scale(json.loads(json.dumps(recipe.to_dict()))["deltas"][0]["scale"]) == schedule


@given(st.integers(0, 500), st.integers(1, 500), NUMBERS, NUMBERS, st.data())
def test_layers_are_interpolated_exactly(first, count, start, end, data):
    """Each layer's scale is the exact line between first and last, rounded once; the ends are met
    to the bit.
    """
    span = Span(first, first + count, start, end)
    layer = data.draw(st.integers(first, first + count))
    share = Fraction(layer - first, count)
    assert span.at(layer) == float(Fraction(start) * (1 - share) + Fraction(end) * share)
    assert (span.at(first), span.at(first + count)) == (start, end)
    assert min(start, end) <= span.at(layer) <= max(start, end)


def recipe_of(tmp_path, scale):
    """The scale of a recipe file whose scale begins in line 5."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"new_base: n\ndeltas:\n- post: p\n  base: b\n  scale:\n{scale}\n")
    return read_recipe(path).deltas[0].scale


def test_the_whole_form(tmp_path):
    """Globs, lists of them, layers with ranges and single numbers, presets, and the rest; rules
    know their lines.
    """
    schedule = recipe_of(
        tmp_path,
        '    - {match: "*embed_tokens*", value: 0}\n'
        '    - match: ["*.mlp.*", "*.ffn.*"]\n'
        "      layers: {0-53: 0.75, 54-80: [0.75, 0.125], 81: 2}\n"
        "    - attention-only\n"
        "    - {preset: experts-only, value: -1e-3}\n"
        "    - 0.5",
    )
    assert schedule == Schedule(
        (
            Rule(("*embed_tokens*",), 0),
            Rule(
                ("*.mlp.*", "*.ffn.*"),
                layers=(Span(0, 53, 0.75, 0.75), Span(54, 80, 0.75, 0.125), Span(81, 81, 2, 2)),
            ),
            Rule(preset="attention-only", value=1),
            Rule(preset="experts-only", value=-1e-3),
            Rule(value=0.5),
        )
    )
    lines = [rule.where.rpartition(", ")[2] for rule in schedule.rules]
    assert lines == [f"line {number}" for number in (6, 7, 9, 10, 11)]
    assert schedule.rules[1].layers[0].where.endswith("line 8")


@pytest.mark.parametrize("form", ["linear-only", "{preset: linear-only, value: 1}"])
def test_a_preset_alone_is_the_whole_scale(tmp_path, form):
    """What it does not speak of gets nothing; in a list it is a rule like others."""
    assert recipe_of(tmp_path, f"    {form}") == preset("linear-only")
    assert recipe_of(tmp_path, f"    - {form}").rules == preset("linear-only").rules[:1]
    assert Delta("p", "b", "linear-only").scale == preset("linear-only")


@pytest.mark.parametrize(
    ("scale", "line", "hint"),
    [
        ("    - {match: a, value: much}", 6, "not a number"),
        ("    - {match: a, value: .inf}", 6, "not a number"),
        ("    - {match: a, value: nan}", 6, "not a finite number"),
        ("    - {match: a}", 6, "without value or layers"),
        ("    - {value: 1}", 6, "without match"),
        ("    - {mach: a, value: 1}", 6, "did you mean 'match'"),
        ("    - 1\n    - {match: a, value: 1}", 6, "never reached"),
        ("    - linear-onli", 6, "linear-only"),
        ("    - {preset: linearonly, value: 1}", 6, "did you mean 'linear-only'"),
        ("    - match: a\n      value: 1\n      layers: {1: 2}", 8, "either value or layers"),
        ("    - match: a\n      layers:\n        0-5: 1\n        5-9: 2", 9, "overlap"),
        ("    - match: a\n      layers:\n        3: 1\n        3: 2", 9, "overlap"),
        ("    - match: a\n      layers:\n        9-5: 1", 8, "reversed"),
        ("    - match: a\n      layers:\n        -5: 1", 8, "no layers"),
        ("    - match: a\n      layers:\n        all: 1", 8, "no layers"),
        ("    - match: a\n      layers:\n        7: [1, 2]", 8, "alone cannot go"),
        ("    - match: a\n      layers:\n        0-7: [1, 2, 3]", 8, "not clear"),
        ("    - match: a\n      layers: [1, 2]", 7, "not a mapping"),
        ("    []", 6, "empty"),
        ("    - [1, 2]", 6, "expected one value|a rule is a mapping"),
    ],
)
def test_mistakes_are_placed(tmp_path, scale, line, hint):
    """Every mistake in a scale is reported with its line."""
    with pytest.raises(UsageError, match=hint) as error:
        recipe_of(tmp_path, scale)
    assert error.value.where.endswith(f"recipe.yaml, line {line}")


def test_python_has_the_same_form_and_the_same_refusals():
    """A scale may be given as YAML has it; without lines, the mistake is still said."""
    delta = Delta("p", "b", [{"match": "*.mlp.*", "layers": {"0-1": [1, 0]}}, 0.5])
    assert delta.scale.rules[0].layers == (Span(0, 1, 1.0, 0.0),)
    for wrong in ("much", None, [], {}, {"match": "a"}, [object()], float("nan")):
        with pytest.raises(UsageError):
            Delta("p", "b", wrong)
    with pytest.raises(UsageError, match="overlap"):
        Rule("a", layers=(Span(0, 2, 1, 1), Span(2, 3, 1, 1)))


def test_symbols():
    """The formula in the paper's symbols: numbers, signs, and s(name) for a schedule."""
    several = Recipe("n", (Delta("p", "b", 0.7), Delta("q", "c", "mlp-only"), Delta("r", None, -1)))
    assert several.symbols == (
        "Θ = Θ'_base + 0.7·(Θ_post1 − Θ_base1) + s₂(name)·(Θ_post2 − Θ_base2) − Δ3"
    )
    assert Recipe("n", (Delta("p", "b"),)).symbols == "Θ = Θ'_base + (Θ_post − Θ_base)"
