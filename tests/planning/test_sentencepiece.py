"""Pieces of SentencePiece models and tiktoken files, and of nothing else."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.planning.sentencepiece import pieces


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


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, unique=True))
def test_tokens_of_a_tiktoken_file(tokens):
    """Lines of base64 and rank; tokens that are no UTF-8 stay different."""
    lines = [base64.b64encode(t) + b" " + str(i).encode() for i, t in enumerate(tokens)]
    found = pieces(b"\n".join(lines) + b"\n")
    assert len(set(found)) == len(tokens)
    assert found[0].encode("utf-8", errors="surrogateescape") == tokens[0]


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
