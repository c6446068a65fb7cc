"""Which tensor corresponds to which: prefixes, rules, proposals, heads."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.errors import UsageError
from paramdelta.formats.view import Tensor, Zeros
from paramdelta.planning.names import (
    applied,
    bridged,
    head_and_embedding,
    parse_rule,
    propose,
    renamed,
    repeated,
    tie_of,
)


def views(shapes):
    """Tensors of these shapes by name."""
    return {name: Zeros(name, "BF16", shape) for name, shape in shapes.items()}


TEXT = views(
    {
        "model.embed_tokens.weight": (32, 8),
        **{f"model.layers.{i}.mlp.weight": (8, 16) for i in range(4)},
        "lm_head.weight": (32, 8),
    }
)
VISION = views(
    {
        "model.language_model.embed_tokens.weight": (32, 8),
        **{f"model.language_model.layers.{i}.mlp.weight": (8, 16) for i in range(4)},
        **{f"model.vision_tower.layers.{i}.mlp.weight": (6, 6) for i in range(9)},
        "lm_head.weight": (32, 8),
    }
)


@pytest.mark.parametrize(
    ("rule", "name", "expected"),
    [
        ("model.* -> language_model.model.*", "model.a.b", "language_model.model.a.b"),
        ("*.w1.* -> *.gate.*", "x.y.w1.weight", "x.y.gate.weight"),
        ("* -> model.*", "a", "model.a"),
        ("a.b -> c", "a.b", "c"),
        ("a.b -> c", "a.bc", None),
        ("a.*.b -> a.*", "axb", None),
    ],
)
def test_rules(rule, name, expected):
    """Each * stands for the same text on both sides; dots are dots."""
    assert parse_rule(rule).apply(name) == expected


@pytest.mark.parametrize("text", ["", "a", "a ->", "-> b", "a.* -> b", "a -> b.*", "a.* > b.*"])
def test_rules_that_cannot_be_read(text):
    """A rule without both sides, or with other numbers of *, is a usage error."""
    with pytest.raises(UsageError, match="cannot be read"):
        parse_rule(text)


@given(st.text(max_size=30))
def test_any_text_is_a_rule_or_refused(text):
    """Whatever is typed is read or refused with a usage error."""
    try:
        rule = parse_rule(text)
    except UsageError:
        return
    rule.apply("model.layers.0.weight")


def test_names_that_the_target_has_stay():
    """A short rule leaves alone what fits already, and says how often it was used."""
    found, used = renamed(TEXT, [parse_rule("* -> model.language_model.*")], ["lm_head.weight"])
    assert "lm_head.weight" in found
    assert used.total() == 5
    rules = [parse_rule("a.* -> c.*"), parse_rule("b.* -> c.*")]
    with pytest.raises(UsageError, match="two tensors"):
        renamed(views({"a.1": (1,), "b.1": (1,)}), rules, [])


def test_a_text_model_is_proposed_for_the_text_tower():
    """One rule, with its evidence; the vision tower stays out of it."""
    (proposal,) = propose(TEXT, VISION)
    assert proposal.rule.text == "model.* -> model.language_model.*"
    assert (proposal.agree, proposal.clash, proposal.of) == (5, 0, 5)
    assert "5 of 5 agree" in str(proposal)
    found, _ = renamed(TEXT, [proposal.rule], VISION)
    assert found.keys() < VISION.keys()


def test_older_names_of_vision_language_models():
    """``language_model.model.`` against ``model.language_model.``: each part by a rule."""
    old = views(
        {
            n.replace("model.language_model.", "language_model.model.")
            .replace("model.vision_tower", "vision_tower")
            .replace("lm_head", "language_model.lm_head"): v.shape
            for n, v in VISION.items()
        }
    )
    assert applied(propose(old, VISION), old, VISION).keys() == VISION.keys()


def test_other_shapes_are_not_proposed():
    """Names that would meet tensors of another shape are no counterpart."""
    other = views({f"decoder.layers.{i}.mlp.weight": (8, 15) for i in range(4)})
    assert propose(TEXT, other) == ()
    assert propose(TEXT, TEXT) == ()


def test_prefixes_are_bridged_where_that_helps():
    """A prefix is added or taken off only where more names agree then."""
    bare = {n.removeprefix("model."): v for n, v in TEXT.items()}
    assert bridged(bare, TEXT)[1] == "+model."
    assert bridged(TEXT, bare)[1] == "-model."
    assert bridged(TEXT, bare)[0].keys() == bare.keys()
    assert bridged(TEXT, views({"x.y": (1,)})) == (TEXT, None)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["lm_head.weight", "model.embed_tokens.weight"], (0, 1)),
        (["lm_head.weight", "transformer.wte.weight"], (0, 1)),
        (["language_model.lm_head.weight", "language_model.model.embed_tokens.weight"], (0, 1)),
        (["proj_out.weight", "model.decoder.embed_tokens.weight"], (0, 1)),
        (["cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"], (0, 1)),
        (["lm_head.weight", "shared.weight"], (0, 1)),
        (["embed_out.weight", "gpt_neox.embed_in.weight"], (0, 1)),
        (["model.embed_tokens.weight"], None),
        (["vision.lm_head.weight", "text.embed_tokens.weight"], None),
    ],
)
def test_heads_and_their_embeddings(names, expected):
    """The families' heads are found, each with the embedding of its own part of the model."""
    found = head_and_embedding([views(dict.fromkeys(names, (2, 2)))])
    assert found == (None if expected is None else tuple(names[i] for i in expected))


def test_where_a_tie_is_said():
    """At the top, else in the text part."""
    assert tie_of({"tie_word_embeddings": True}) == (None, True)
    assert tie_of({"text_config": {"tie_word_embeddings": False}}) == ("text_config", False)
    assert tie_of({"text_config": 3}) == (None, None)


@pytest.mark.parametrize(
    ("own", "target"),
    [(["a.x", "x", "y"], ["a.x", "a.y"]), (["a.x", "x", "a.y"], ["x", "y"])],
)
def test_a_prefix_that_gives_two_tensors_one_name_is_not_used(own, target):
    """Neither added nor taken off: which of the two is meant cannot be known."""
    own = views(dict.fromkeys(own, (1,)))
    assert bridged(own, views(dict.fromkeys(target, (1,)))) == (own, None)


TEXT_RULE = st.text("ab.*", min_size=1, max_size=6)


@given(TEXT_RULE, st.text("ab.", max_size=8))
def test_rules_match_as_expressions_do(source, name):
    """The first stars take as much as they can, as (.*) of a regular expression does."""
    target = "|".join("*" * (source.count("*") > 0) for _ in range(source.count("*")))
    rule = parse_rule(f"{source} -> {target or 'x'}")
    match = re.fullmatch("(.*)".join(map(re.escape, source.split("*"))), name)
    expected = None if match is None else "|".join(match.groups()) if "*" in source else "x"
    assert rule.apply(name) == expected


def test_repeated_names():
    """Names of the same bytes of one file are a group; the same place of another file is not."""
    tensors = {
        name: Tensor(name, "F32", (size,), Path(file), 8, 4 * size)
        for name, file, size in (("a", "x", 2), ("b", "x", 2), ("c", "y", 2), ("d", "x", 0))
    }
    tensors["e"] = Tensor("e", "F32", (0,), Path("x"), 8, 0)
    tensors["f"] = Tensor("f", "I32", (2,), Path("x"), 8, 8)
    assert repeated(tensors) == [["a", "b"]]


MANY = 8_000


@pytest.mark.parametrize(
    ("own", "target"),
    [
        ([f"p{i}.w" for i in range(MANY)], [f"q{i}.w" for i in range(MANY)]),
        ([f"a.b.c.{i}" for i in range(MANY)], [f"p{i}.a.b.c.{i}" for i in range(MANY)]),
        ([f"p{i}.q.r.{i}" for i in range(MANY)], [f"r.{i}" for i in range(MANY)]),
        ([f"m{i}.lm_head.weight" for i in range(MANY)], ["embed_tokens.weight"]),
        ([f"p{i % 64}.{i}" for i in range(MANY)], [f"q{i % 64}.{i}" for i in range(MANY)]),
    ],
    ids=["endings", "prefixes to add", "prefixes to take off", "heads", "rules"],
)
def test_hostile_names_cost_little(own, target):
    """Names chosen to meet each other in every way: no step takes more than linear time."""
    own, target = views(dict.fromkeys(own, (1,))), views(dict.fromkeys(target, (1,)))
    start = time.process_time()
    bridged(own, target)
    propose(own, target)
    head_and_embedding([own, target])
    parse_rule("*a*a*a*a* -> *b*b*b*b*").apply("a" * 100_000 + "b")
    assert time.process_time() - start < 3
