"""The lineages of the vocabulary study are what its page says, and the page says what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("torch")

from studies.vocabulary import lineage, page, run, tokens
from studies.vocabulary.reference import Row
from studies.vocabulary.reference import rows as reference_rows

pytestmark = pytest.mark.hf
PAGE = Path(__file__).parents[2] / "docs" / "vocabulary.md"

GENERAL = ["the cat and the dog were in the house", "a house is a house", "in there, then"] * 20
DOMAIN = ["hepatitis and nephritis", "arthritis is an inflammation", "hepatocytes"] * 20


@pytest.fixture(scope="module")
def cases() -> dict[str, lineage.Case]:
    """All cases, on a few sentences."""
    return lineage.cases(GENERAL, DOMAIN, 300, 20)


def test_an_extension_keeps_all_tokens_and_their_ids(cases: dict[str, lineage.Case]) -> None:
    """Appended tokens leave the others alone; between them, they move nearly all of them."""
    old, _, new = cases["appended"].tokenizers
    assert old.get_vocab().items() < new.get_vocab().items()
    _, _, between = cases["between"].tokenizers
    assert between.get_vocab().keys() == new.get_vocab().keys()
    moved = [t for t, i in old.get_vocab().items() if between.get_vocab()[t] != i]
    assert len(moved) > 200


@pytest.mark.parametrize("name", ["appended", "between", "words"])
def test_an_extension_cuts_its_domain_into_fewer_tokens(
    cases: dict[str, lineage.Case], name: str
) -> None:
    """The new tokens are used, and text comes back whole."""
    old, _, new = cases[name].tokenizers
    for sentence in DOMAIN[:3]:
        ids = new.encode(sentence).ids
        assert len(ids) < len(old.encode(sentence).ids)
        assert new.decode(ids) == sentence


def test_chat_tokens_and_the_domain_claim_the_same_ids(cases: dict[str, lineage.Case]) -> None:
    """The trap of the appended case: post's chat tokens and the new base's first words."""
    _, post, new = cases["appended"].tokenizers
    for token in tokens.CHAT:
        number = post.token_to_id(token)
        assert new.id_to_token(number) not in (None, token)


def test_renamed_tokens_move_up_as_in_llama(cases: dict[str, lineage.Case]) -> None:
    """Some reserved tokens have the name that another had, and all else is the same."""
    old, _, new = (t.get_vocab() for t in cases["renamed"].tokenizers)
    assert set(old.values()) == set(new.values())
    moved = {t for t in old.keys() & new.keys() if old[t] != new[t]}
    assert moved
    assert moved <= set(tokens.RESERVED)


def test_rows_of_the_reference(tmp_path: Path) -> None:
    """By token, by id, grafted into padding and beyond it, taken: on a few words."""
    vocabularies = {
        "base": {"a": 0, "b": 1},
        "post": {"a": 0, "b": 1, "x": 2, "y": 3},
        "new-base": {"b": 0, "n": 1, "a": 2},
    }
    folders = {role: tmp_path / role for role in vocabularies}
    for role, words in vocabularies.items():
        folders[role].mkdir()
        content = {"model": {"type": "WordLevel", "vocab": words, "unk_token": "a"}}
        (folders[role] / "tokenizer.json").write_text(json.dumps({"version": "1.0", **content}))
    counts = {"base": 2, "post": 4, "new-base": 4}
    kept, padding = Row(1), Row(3)
    assert reference_rows(folders, counts, "token") == [Row(0, 1, 1), kept, Row(2, 0, 0), padding]
    assert reference_rows(folders, counts, "token", ("y", "x"), ("a",)) == [
        Row(0, 1, 1),
        kept,
        Row(post=0),
        Row(post=3),
        Row(post=2),
    ]
    assert reference_rows(folders, counts, "id") == [Row(0, 0, 0), Row(1, 1, 1), Row(2), padding]
    assert reference_rows(folders, counts, "new-base") == [Row(i) for i in range(4)]


def test_the_page_holds_the_results() -> None:
    """docs/vocabulary.md is what `make study-vocabulary` would make of the results."""
    text = PAGE.read_text(encoding="utf-8")
    results = json.loads(run.RESULTS.read_text(encoding="utf-8"))
    assert page.filled(text, results) == text


def test_what_the_page_says_in_words() -> None:
    """The statements of the page that are not in its tables, from the results."""
    results = json.loads(run.RESULTS.read_text(encoding="utf-8"))["attempts"]
    ran = [r for r in results if r["status"] == 0]
    for record in ran:
        f = record["figures"]
        if record["tool"] == "paramdelta":
            assert f["all_right"], record
        else:
            assert not f["stops"], record
        if record["tool"] == "mergekit" and "union" in record["what"]:
            renamed = record["case"] == "renamed"
            assert (f["shared"][0] == f["shared"][1]) is not renamed
            assert f["domain"][0] == f["domain"][1]
    assert {r["case"] for r in ran if r["tool"] == "paramdelta"} == {r["case"] for r in results}
