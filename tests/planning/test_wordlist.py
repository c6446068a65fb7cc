"""Vocabularies with one token a line: where lines end, and which id a token has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.planning.wordlist import (
    counted_words,
    is_rwkv,
    lines,
    rwkv,
    stripped_words,
    words,
)

FRONT = ("<s>", "<pad>", "</s>", "<unk>")
EXOTIC = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"  # where str.splitlines cuts and no loader does


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))))
def test_a_token_is_a_line_whatever_it_is(tokens):
    """Any text but a line end is a token, with the number of its line; the last of equals wins."""
    data = "".join(f"{token}\n" for token in tokens).encode()
    assert words(data) == {token: number for number, token in enumerate(tokens)}


@given(st.lists(st.sampled_from(["a", "b", *EXOTIC])), st.sampled_from(["\n", "\r\n", "\r"]))
def test_lines_end_as_in_text_mode(tmp_path_factory, tokens, end):
    """As Python reads a text file, which is how the loaders read it."""
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_bytes(end.join(tokens).encode())
    with path.open(encoding="utf-8") as file:
        expected = [line.rstrip("\n") for line in file]
    assert lines(path.read_bytes()) == expected


def test_esm_strips_and_splits_everywhere():
    """ESM's loader: splitlines and strip, so U+2028 is a line end there."""
    assert stripped_words("<cls>\nA \n\u2028B".encode()) == {"<cls>": 0, "A": 1, "": 2, "B": 3}


def test_dictionaries_follow_four_tokens():
    """A token may have spaces; of BARTpho's lines only the first word counts."""
    data = "tôi 12\na b 4\n".encode()
    assert counted_words(data, FRONT) == {**dict(zip(FRONT, range(4), strict=True))} | {
        "tôi": 4,
        "a b": 5,
    }
    assert list(counted_words(data, FRONT, first_word=True))[4:] == ["tôi", "a"]
    with pytest.raises(ValueError, match="line 2"):
        counted_words(b"a 1\nb\n", FRONT)


def test_rwkv_states_ids():
    """Python literals of text and bytes; anything else is not evaluated."""
    data = b"1 '\\x00' 1\n2 b'\\xff' 1\n9 \"it's\" 4\n"
    assert is_rwkv(data)
    assert rwkv(data) == {"\x00": 1, "\udcff": 2, "it's": 9}
    assert not is_rwkv(b"[PAD]\n[UNK]\n")
    for bad in (b"1 '' + 'a' 1\n", b"1 'a'*9 9\n", b"x 'a' 1\n"):
        with pytest.raises((ValueError, SyntaxError)):
            rwkv(data + bad)
