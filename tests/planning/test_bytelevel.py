"""Tokens that are byte strings: tiktoken files, tekken.json, plain bytes."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.planning.bytelevel import (
    ALPHABET,
    is_tiktoken,
    plain_bytes,
    read_out,
    spelled,
    tekken,
    tiktoken,
)


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, unique=True), st.integers(0, 9))
def test_ids_of_a_tiktoken_file_are_its_ranks(tokens, first):
    """Whatever the bytes and wherever the ranks start; different tokens stay different."""
    lines = [base64.b64encode(t) + b" %d" % i for i, t in enumerate(tokens, first)]
    data = b"\n".join(lines) + b"\n"
    assert is_tiktoken(data)
    assert tiktoken(data) == {spelled(t): i for i, t in enumerate(tokens, first)}


def test_the_alphabet_is_that_of_byte_level_bpe():
    """As the tokenizers library writes it; 256 different characters."""
    pre_tokenizers = pytest.importorskip("tokenizers").pre_tokenizers
    assert set(ALPHABET) == set(pre_tokenizers.ByteLevel.alphabet())
    assert spelled(b" the\n") == "ĠtheĊ"


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data):
    """Other bytes are no tiktoken file, or a ValueError."""
    if not is_tiktoken(data):
        return
    try:
        assert tiktoken(data)
    except ValueError:
        return


def entry(rank, token):
    """One token of a tekken.json."""
    return {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}


def test_special_tokens_of_tekken_come_first():
    """Named ones, then numbered ones up to the stated count; the rest of the size is for bytes."""
    content = {
        "config": {"default_vocab_size": 6, "default_num_special_tokens": 4},
        "special_tokens": [{"rank": 1, "token_str": "<s>"}, {"rank": 0, "token_str": "<unk>"}],
        "vocab": [entry(0, b" a"), entry(1, b"\xff"), entry(2, b"left out")],
    }
    ids, special = tekken(content)
    assert special == ["<unk>", "<s>", "<SPECIAL_2>", "<SPECIAL_3>"]
    assert ids == {"Ġa": 4, "ÿ": 5} | {token: i for i, token in enumerate(special)}
    for bad in (
        {**content, "special_tokens": [{"rank": 1, "token_str": "<s>"}]},
        {**content, "special_tokens": None},
        {**content, "config": {"default_num_special_tokens": 1e9}},
        {**content, "config": {"default_num_special_tokens": 10**12}},
    ):
        with pytest.raises(ValueError, match=r"special|size"):
            tekken(bad)


def test_bytes_follow_the_tokens_in_front():
    """ByT5: three tokens, 256 bytes, sentinels."""
    ids = plain_bytes(("<pad>", "</s>", "<unk>"), ("<extra_id_0>",))
    assert (ids["a"], ids["<extra_id_0>"]) == (ord("a") + 3, 259)


@given(st.text())
def test_a_spelled_token_is_read_out(text):
    """Whatever the language: what is shown is the text, not a character for each byte."""
    assert read_out(spelled(text.encode())) == text


@pytest.mark.parametrize("token", ["สวัสดี", "▁the", "é", "<|end|>", ""])
def test_other_tokens_stay(token):
    """Tokens that are no spelled bytes, or bytes of half a character, are shown as they are."""
    assert read_out(token) == token
