"""Ids that files state, and how added tokens are numbered."""

import tracemalloc

import pytest

from paramdelta.planning.vocabtable import IdError, Table, checked_ids, key_id

BAD = [-1, 1 << 24, 10**12, 10**400, True, False, 1.0, float("inf"), float("nan"), "3", None, [1]]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_ids_are_small_integers(bad):
    """Negative, huge, boolean and fractional ids are refused with the token, in little memory."""
    tracemalloc.start()
    with pytest.raises(IdError, match="token 'x' has the id"):
        checked_ids({"a": 0, "x": bad})
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert checked_ids({"a": 0, "b": (1 << 24) - 1}) == {"a": 0, "b": (1 << 24) - 1}


@pytest.mark.parametrize("bad", ["-1", "1.0", "1e3", "", "x", "٣", "1" * 30, "16777216"])
def test_ids_as_keys(bad):
    """Keys of added_tokens_decoder are plain digits."""
    assert key_id("32000", "x") == 32000
    with pytest.raises(IdError, match="'x'"):
        key_id(bad, "x")


def test_stated_ids_are_kept_or_not():
    """The tokenizers library numbers added tokens itself; Python tokenizers keep stated ids."""
    library, python = Table({"a": 0, "b": 1}), Table({"a": 0, "b": 1}, counts=False)
    for table in (library, python):
        table.add("x", 7)
        table.add("a", 9)
        table.add("y")
    assert library.ids == {"a": 0, "b": 1, "x": 2, "y": 3}
    assert python.ids == {"a": 9, "b": 1, "x": 7, "y": 3}
    assert python.tokens() == {9: "a", 1: "b", 7: "x", 3: "y"}


def test_a_copy_grows_by_itself():
    """What is added to a copy is not added to the table."""
    table = Table({"a": 0})
    other = table.copy()
    other.add("b")
    assert table.ids == {"a": 0}
    assert not table.special
    assert other.special == {1}
