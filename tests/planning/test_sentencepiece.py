"""Pieces of SentencePiece models, and their ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.planning.sentencepiece import Numbering, pieces


def field(number, data):
    """One length-delimited field of a protocol buffer."""
    size = b""
    count = len(data)
    while True:
        size += bytes([count & 0x7F | (0x80 if count > 0x7F else 0)])
        count >>= 7
        if not count:
            return bytes([number << 3 | 2]) + size + data


def model(texts):
    """A SentencePiece model of these pieces, each with a score and a type."""
    body = b"".join(
        field(1, field(1, text.encode()) + b"\x15\x00\x00\x80\x3f" + b"\x18\x01") for text in texts
    )
    return body + field(2, b"\x08\x01") + b"\x20\x05"


@given(st.lists(st.text(max_size=200), min_size=1))
def test_pieces_of_a_model(texts):
    """Any texts, in their order; other fields are passed over."""
    assert pieces(model(texts)) == texts


@given(st.binary(max_size=300))
def test_anything_else_is_refused(data):
    """Whatever bytes come: pieces, or a ValueError or IndexError, which the reader turns into an
    error with its place.
    """
    try:
        assert pieces(data)
    except (ValueError, IndexError):
        return


def test_the_end_of_a_damaged_model():
    """A length that goes beyond the file is refused."""
    with pytest.raises(ValueError, match="too early"):
        pieces(model(["a", "b"])[:5])


@given(st.lists(st.text(min_size=3), min_size=3, unique=True), st.integers(0, 3))
def test_pieces_follow_the_tokens_in_front(texts, skip):
    """Whatever the pieces: those that are not skipped, in order, between front and end."""
    numbering = Numbering(("A", "B"), skip, ("C",))
    ids = numbering.ids(texts)
    assert sorted(ids, key=ids.get) == ["A", "B", *texts[skip:], "C"]
    assert sorted(ids.values()) == list(range(len(ids)))
    later = Numbering(("A", "B"), skip, at=10).ids(texts)
    assert [later[text] for text in texts[skip:]] == list(range(10, 10 + len(texts) - skip))
