"""tokenizer.json, against the library that reads it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta.planning.tokenizerjson import differing_rules, tokenizer_table

tokenizers = pytest.importorskip("tokenizers")

TOKENS = st.sampled_from(["a", "b", "ab", "<x>", "<y>", "<z>", "", " ", "é"])


@st.composite
def contents(draw):
    """A tokenizer.json of any model, with added tokens whose ids may be anything."""
    kind = draw(st.sampled_from(["BPE", "WordPiece", "WordLevel", "Unigram"]))
    words = draw(st.lists(TOKENS, min_size=1, unique=kind != "Unigram"))
    if kind == "Unigram":
        model = {"type": kind, "vocab": [[word, 0.0] for word in words], "unk_id": 0}
    else:
        ids = draw(st.lists(st.integers(0, 20), unique=True, min_size=len(words)))
        model = {"type": kind, "vocab": dict(zip(words, ids, strict=False)), "unk_token": words[0]}
        model |= {"merges": []} if kind == "BPE" else {}
        model |= (
            {"continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
            if kind == "WordPiece"
            else {}
        )
    added = [
        {
            "id": draw(st.integers(0, 30)),
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": draw(st.booleans()),
        }
        for token in draw(st.lists(TOKENS, max_size=5))
    ]
    return {"version": "1.0", "added_tokens": added, "model": model}


@settings(max_examples=300)
@given(contents())
def test_ids_are_those_of_the_library(content):
    """Every token has the id that the tokenizers library gives it, stated or not."""
    loaded = tokenizers.Tokenizer.from_str(json.dumps(content))
    assert tokenizer_table(content).ids == loaded.get_vocab()


def test_special_tokens_are_those_that_are_marked():
    """An added token that is not special stands in the text."""
    added = [{"content": "<a>", "special": True}, {"content": "b", "special": False}]
    table = tokenizer_table({"model": {"vocab": {"c": 0}}, "added_tokens": added})
    assert table.special == {1}
    assert table.added == {"<a>": 1, "b": 2}


MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model": {**MODEL, "merges": [["a", "b"]], "byte_fallback": False}}, ()),
        ({"model": {**MODEL, "merges": []}}, ("model.merges",)),
        ({"model": {**MODEL, "vocab": {**MODEL["vocab"], "c": 3}, "merges": []}}, ()),
        ({"model": {**MODEL, "byte_fallback": True}}, ("model.byte_fallback",)),
        ({"normalizer": {"type": "Lowercase"}}, ("normalizer",)),
        ({"pre_tokenizer": {"type": "Metaspace"}, "model": 3}, ("pre_tokenizer",)),
    ],
)
def test_rules_that_differ(change, expected):
    """Only what splits a text into other tokens, however it is written."""
    assert differing_rules({"normalizer": None, "model": MODEL}, {"model": MODEL} | change) == (
        expected
    )


def test_scores_that_differ():
    """Of Unigram, with vocabularies of one size."""
    ours, theirs = ({"model": {"type": "Unigram", "vocab": [["a", s]]}} for s in (-1.0, -2.0))
    assert differing_rules(ours, theirs) == ("model.vocab",)
    assert differing_rules(ours, ours) == ()
