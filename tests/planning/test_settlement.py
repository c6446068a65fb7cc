"""Rows of tokens: by id, by token, kept, padded, grafted, taken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.errors import UsageError
from paramdelta.formats.view import ABSENT
from paramdelta.planning.settlement import by_rows, on_axis, picked, settle
from paramdelta.planning.vocabulary import Opaque, Vocabulary, compare
from tests.views import Store


def vocabulary(*tokens, special=()):
    """Tokens numbered from 0; None leaves an id out."""
    numbered = {i: token for i, token in enumerate(tokens) if token is not None}
    return Vocabulary(numbered, frozenset(i for i, t in numbered.items() if t in special))


A = vocabulary("a", "b", "c", "<r0>", "<r1>")


def counts(settlement, heights):
    """Rows by fate."""
    return {case.name: case.count for case in settlement.cases(heights)}


def test_one_vocabulary_goes_row_by_row():
    """Equal vocabularies and heights need no map, padding too; other heights do."""
    settlement = settle([A, A, A], "auto", (), (), "post")
    assert settlement.mode == "id"
    assert settlement.plain([8, 8, 8])
    assert not settlement.plain([8, 9, 8])
    assert settlement.rows(1, 8, 8, 9).tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert counts(settlement, [8, 9, 8]) == {"same id": 5, "padding": 3}


def test_one_text_at_two_ids():
    """Of one vocabulary every row is its own, also where two of its tokens look alike."""
    twice = vocabulary("a", "b", "a", None, "c")
    agreement = compare(twice, vocabulary("a", "b", "a", None, "c"))
    assert agreement.same
    assert agreement.rows.tolist() == [0, 1, 2, ABSENT, 4]


def test_renamed_reserved_tokens_are_the_same():
    """Llama 3 -> 3.1: a reserved token got a name; a token that moved is another matter."""
    old = vocabulary("a", "<reserved_0>", "<start>", "<reserved_1>", "<reserved_2>")
    new = vocabulary("a", "<eom>", "<start>", "<reserved_0>", "<reserved_1>")
    agreement = compare(new, old)
    assert agreement.same
    assert agreement.renamed == (1, 3, 4)
    assert settle([new, old, old], "auto", (), (), "post").plain([5, 5, 5])
    assert not compare(vocabulary("x", "<reserved_0>"), old).same
    shifted = vocabulary("neu", "a", "<reserved_0>", "<start>", "<reserved_1>")
    assert compare(shifted, old).rows.tolist() == [-1, 0, 1, 2, 3]


def test_post_may_rename_what_it_inherited():
    """R1's distillation of Llama calls <begin> by another name: base and new base know which."""
    base = vocabulary("a", "b", "<begin>", "<end>")
    post = vocabulary("a", "b", "<start>", "<end>")
    assert not compare(base, post).same
    settlement = settle([base, post, base], "auto", (), (), "post")
    assert settlement.same
    assert settlement.agreements[1].renamed == (2,)
    placeholder = vocabulary("a", "b", "<begin>", "<reserved>")
    assert settle([placeholder, post, placeholder], "auto", (), (), "post").same


def test_tokens_that_happen_to_meet_are_not_the_same():
    """A special token of post and another token of the new base at one id: two extensions."""
    new = vocabulary("a", "b", "neu", "<sep>")
    post = vocabulary("a", "b", "<im_start>", "<im_end>")
    agreement = compare(new, post)
    assert not agreement.renamed
    assert agreement.only_other == (2, 3)
    assert agreement.only_new == (2, 3)


def test_an_extension_corresponds_by_id():
    """Tokens at the end that only the new base has keep its rows."""
    new = vocabulary("a", "b", "c", "<r0>", "<r1>", "neu", "mehr")
    settlement = settle([new, A, A], "auto", (), (), "post")
    assert settlement.mode == "id"
    assert settlement.rows(1, 8, 8, 5).tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert counts(settlement, [8, 5, 5]) == {"same id": 5, "new base only": 2, "padding": 1}


def test_shifted_ids_correspond_by_token():
    """Where ids moved, rows are found by token; --vocabulary id insists on numbers."""
    new = vocabulary("neu", "a", "c", "b", "<r0>", "<r1>")
    settlement = settle([new, A, A], "auto", (), (), "post")
    assert settlement.mode == "token"
    assert settlement.rows(1, 6, 6, 5).tolist() == [-1, 0, 2, 1, 3, 4]
    forced = settle([None, None, None], "id", (), (), "post")
    assert forced.rows(1, 6, 6, 5).tolist() == [0, 1, 2, 3, 4, -1]
    assert forced.plain([5, 5, 5])


def test_a_base_without_tokenizer_is_taken_as_posts():
    """A bare base has post's vocabulary; with none anywhere, nothing is known."""
    settlement = settle([A, A, None], "auto", (), (), "post")
    assert settlement.agreements[2].same
    assert settle([A, None, None], "auto", (), (), "post").mode == "unknown"
    with pytest.raises(UsageError, match="missing"):
        settle([A, None, None], "auto", ("x",), (), "post")


def test_grafts_and_takes():
    """A token that only post has gets the first free row, or one at the end; a take is post's."""
    post = vocabulary("a", "b", "c", "<r0>", "<r1>", "<im_start>", "<im_end>")
    settlement = settle([A, post, A], "auto", ("<im_end>",), ("b",), "post")
    assert dict(settlement.grafts) == {5: 6}
    assert dict(settlement.takes) == {1: 1}
    assert settlement.height(5) == 6
    assert settlement.height(8) == 8
    rows = settlement.rows(1, 8, 8, 7)
    assert rows[[1, 5]].tolist() == [ABSENT, ABSENT]
    assert settlement.outright(8, 8, 7).tolist() == [0, 8 + 1, 2, 3, 4, 8 + 6, 6, 7]
    assert settlement.outright(6, 5, 7).tolist() == [0, 5 + 1, 2, 3, 4, 5 + 6]
    assert settlement.output_id(6) == 5
    assert settlement.output_id(5) is None
    assert settlement.only_in_post == (5,)
    assert counts(settlement, [8, 7, 5]) == {
        "same id": 4,
        "padding": 2,
        "post's row, taken": 1,
        "grafted": 1,
        "post only": 1,
    }


@pytest.mark.parametrize(
    ("graft", "take", "message"),
    [
        (("<im>",), (), "there is no token"),
        (("b",), (), "has the token .* already"),
        ((), ("neu",), "there is no token"),
    ],
)
def test_tokens_that_cannot_be_meant(graft, take, message):
    """A token that is not there, or there already, is a usage error that names it."""
    with pytest.raises(UsageError, match=message):
        settle([A, A, A], "auto", graft, take, "post")


def test_tokens_that_the_base_lacks_keep_their_rows():
    """A token of post and new base without a row in base has no Δ."""
    post = vocabulary("a", "b", "c", "<r0>", "<r1>", "<im>")
    settlement = settle([post, post, A], "auto", (), (), "post")
    assert counts(settlement, [6, 6, 5]) == {"same id": 5, "not in base": 1}


@given(st.permutations("abcdefgh"), st.permutations("cdefghij"), st.integers(0, 12))
def test_rows_are_those_of_the_same_token(new, other, own):
    """Whatever the two orders: a row's source is the row of its token, if that is there."""
    settlement = settle(
        [vocabulary(*new), vocabulary(*other), vocabulary(*other)], "auto", (), (), ""
    )
    rows = settlement.rows(1, len(new), len(new), own)
    for token, row in zip(new, rows, strict=True):
        expected = other.index(token) if token in other else -1
        assert row == (expected if expected < own else -1)
    assert rows.dtype == np.int32


B = Opaque("only its class knows the ids", b"1")


def test_doubts():
    """Files that are not understood are the same only if they are equal; none at all is fine."""
    assert not any(settle([B, B, None], "auto", (), (), "").doubts)
    assert settle([None, None, None], "auto", (), (), "").doubts == ()
    for known in ([B, A, A], [A, B, None], [B, Opaque("", b"2"), None]):
        settlement = settle(known, "auto", (), (), "")
        assert settlement.mode == "unknown"
        assert [d is not None and not d.missing for d in settlement.doubts] == [False, True, True]
    assert [d and d.missing for d in settle([None, A, A], "auto", (), (), "").doubts[1:]] == [
        True
    ] * 2
    assert settle([B, A, A], "id", (), (), "").doubts == ()
    with pytest.raises(UsageError, match="only its class"):
        settle([B, A, A], "token", (), (), "")


def test_white_space_that_some_loaders_strip():
    """U+2028 and an empty text at one id are one token, unless either is elsewhere too."""
    new, stripped = vocabulary("a", "\u2028", "b "), vocabulary("a", "", "b")
    agreement = compare(new, stripped)
    assert agreement.rows.tolist() == [0, 1, 2]
    assert agreement.same
    assert compare(new, vocabulary("a", "", "b", "b ")).rows.tolist() == [0, 1, 3]


def test_ids_that_no_text_leads_to():
    """Of two ids with one text the last is reached; the first is matched only with itself."""
    new = vocabulary("a", "b", "a", "c")
    assert compare(new, vocabulary("b", "a", "c")).rows.tolist() == [ABSENT, 0, 1, 2]
    assert compare(new, vocabulary("a", "b", "a", "d")).rows.tolist() == [0, 1, 2, ABSENT]


def test_a_take_may_add_a_row():
    """A token that the new base's tokenizer has and its embedding has not."""
    settlement = settle([A, A, A], "auto", (), ("<r1>",), "post")
    assert settlement.height(3) == 5
    assert settlement.outright(5, 3, 5).tolist() == [0, 1, 2, ABSENT, 3 + 4]


@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 0), ((1, 5), 1), ((3, 5), 1)])
def test_rows_on_any_axis(shape, axis):
    """Tokens are picked on the axis that has them; the inverse restores the shape."""
    array = np.arange(15.0)[: shape[0] * shape[1]].reshape(shape)
    rows = np.array([4, ABSENT, 0], np.int32)
    store = Store()
    view = by_rows(store.tensor("x", array), axis)
    chosen = picked("x", (3, view.shape[1]), (view,), rows)
    found = on_axis(chosen, axis)
    expected = np.take(array, [4, 0, 0], axis)
    expected[(slice(None),) * axis + (1,)] = 0
    assert found.shape == expected.shape
    assert found.array(0, found.elements, store.fetch).tolist() == expected.ravel().tolist()
