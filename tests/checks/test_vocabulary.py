"""Tokens and ids, as the libraries give them."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta.checks import check
from paramdelta.checks.folder import open_folder
from paramdelta.checks.part import read_part
from paramdelta.checks.vocabulary import read_tokens, role_tokens, stop_ids
from paramdelta.planning.findings import Findings, Severity
from tests.checks.folders import TEMPLATE, TOKENIZER_CONFIG, WORDS, edit, put, right, tokenizer


def read(folder):
    """The part, its tokens, and the codes that are found in the tokenizer's files."""
    findings = Findings()
    part = read_part(open_folder(folder, findings), "transformers", findings)
    return part, read_tokens(part, findings), {f.code for f in findings.all(())}


def test_tokenizer_json(tmp_path):
    """All tokens, by their ids."""
    _, tokens, found = read(right(tmp_path))
    assert tokens.ids == {word: n for n, word in enumerate(WORDS)}
    assert tokens.added == frozenset(WORDS[:6])
    assert tokens.whole
    assert not found


ADDED = st.lists(
    st.tuples(st.sampled_from([*WORDS, "x", "y", "z"]), st.integers(0, 24)), max_size=5
)


@pytest.mark.hf
@settings(deadline=None)
@given(ADDED)
def test_numbers_added_tokens_as_the_library(entries):
    """Whatever ids the entries say: the tokenizers library is the reference."""
    tokenizers = pytest.importorskip("tokenizers")
    content = tokenizer()
    template = content["added_tokens"][0]
    content["added_tokens"] = [template | {"id": n, "content": word} for word, n in entries]
    content["post_processor"] = None
    wanted = tokenizers.Tokenizer.from_str(json.dumps(content)).get_vocab()
    with tempfile.TemporaryDirectory() as name:
        put(Path(name), "tokenizer.json", content)
        _, tokens, found = read(Path(name))
    assert tokens.ids == wanted
    assert ("token-disagrees" in found) == any(wanted[word] != n for word, n in entries)


def test_unigram(tmp_path):
    """A list of pieces with scores."""
    content = tokenizer() | {"added_tokens": []}
    content["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a", -1.5]]}
    put(tmp_path, "tokenizer.json", content)
    assert read(tmp_path)[1].ids == {"<unk>": 0, "a": 1}


def test_vocab_txt_has_tokens_that_separate_lines(tmp_path):
    """Only the ends of lines of text files separate: U+2028 and U+0085 are tokens."""
    put(tmp_path, "vocab.txt", "[PAD]\n\u2028\n\x85\r\nlast\n")
    assert read(tmp_path)[1].ids == {"[PAD]": 0, "\u2028": 1, "\x85": 2, "last": 3}


def test_vocab_json_of_several_languages(tmp_path):
    """Vocabularies inside are not taken for tokens."""
    put(tmp_path, "vocab.json", {"en": {"a": 0}, "<pad>": 1})
    assert read(tmp_path)[1].ids == {"<pad>": 1}


@pytest.mark.parametrize("number", [-1, 10**12, True, 1.5, "3", None, [1]])
def test_ids_that_are_none(tmp_path, number):
    """Refused with the token, in every file, without memory for them."""
    content = tokenizer()
    content["model"]["vocab"]["bad"] = number
    put(tmp_path, "tokenizer.json", content)
    put(tmp_path, "added_tokens.json", {"worse": number})
    _, tokens, found = read(tmp_path)
    assert "id-invalid" in found
    assert not {"bad", "worse"} & tokens.ids.keys()


def test_one_id_for_two_tokens(tmp_path):
    """The model's own vocabulary is damaged."""
    content = tokenizer()
    content["model"]["vocab"]["again"] = 7
    put(tmp_path, "tokenizer.json", content)
    assert read(tmp_path)[2] == {"token-disagrees"}


def test_roles(tmp_path):
    """As transformers 5 finds them: special_tokens_map.json goes first, but for a decoder."""
    put(tmp_path, "tokenizer_config.json", {"eos_token": "a", "bos_token": {"content": "b"}})
    put(tmp_path, "special_tokens_map.json", {"eos_token": {"content": "c"}, "pad_token": None})
    assert role_tokens(read(tmp_path)[0]) == {"eos_token": "c", "bos_token": "b"}
    edit(tmp_path, "tokenizer_config.json", added_tokens_decoder={"0": {"content": "a"}})
    assert role_tokens(read(tmp_path)[0]) == {"eos_token": "a", "bos_token": "b"}


@pytest.mark.hf
@pytest.mark.parametrize("decoder", [False, True])
def test_roles_as_transformers(tmp_path, decoder):
    """The library itself, with and without added_tokens_decoder."""
    transformers = pytest.importorskip("transformers")
    right(tmp_path)
    edit(tmp_path, "special_tokens_map.json", eos_token="<|bot|>")
    if decoder:
        entry = {"content": "<|user|>", "special": True}
        edit(tmp_path, "tokenizer_config.json", added_tokens_decoder={"4": entry})
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert role_tokens(read(tmp_path)[0])["eos_token"] == loaded.eos_token
    assert loaded.get_vocab() == read(tmp_path)[1].ids


def test_where_generation_stops(tmp_path):
    """generation_config.json alone where it exists; vLLM adds the tokenizer's token."""
    part, tokens, _ = read(right(tmp_path))
    assert stop_ids(part, tokens) == {"transformers": {2}, "vLLM": {2}}
    edit(tmp_path, "generation_config.json", eos_token_id=[4, 5])
    part, tokens, _ = read(tmp_path)
    assert stop_ids(part, tokens) == {"transformers": {4, 5}, "vLLM": {2, 4, 5}}
    (tmp_path / "generation_config.json").unlink()
    edit(tmp_path, "config.json", eos_token_id=..., text_config={"eos_token_id": 3})
    part, tokens, _ = read(tmp_path)
    assert stop_ids(part, tokens) == {"transformers": {3}, "vLLM": {2, 3}}


@pytest.mark.parametrize(
    ("key", "severity"),
    [
        ("eos_token_id", Severity.REFUSED),
        ("decoder_start_token_id", Severity.REFUSED),
        ("image_token_id", Severity.WARNING),
    ],
)
@pytest.mark.parametrize("number", [24, 23, -7, -1, -100])
def test_configured_ids_have_rows(tmp_path, key, severity, number):
    """24 rows: 23 is the last; −1 and −100 stand for none."""
    edit(right(tmp_path), "config.json", **{key: number})
    found = {f.code: f.severity for f in check(tmp_path).findings}
    assert found.get("token-without-row") is (severity if number in (24, -7) else None)


def test_ids_of_other_vocabularies(tmp_path):
    """What a vision or a speech part calls a token has no row in the text embedding."""
    edit(right(tmp_path), "config.json", audio_config={"pad_token_id": 4000})
    assert "token-without-row" not in {f.code for f in check(tmp_path).findings}


@pytest.mark.parametrize("name", ["ByT5Tokenizer", "CanineTokenizer"])
def test_tokenizers_without_files(tmp_path, name):
    """Bytes and characters need none."""
    right(tmp_path)
    for file in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / file).unlink()
    put(tmp_path, "tokenizer_config.json", TOKENIZER_CONFIG | {"tokenizer_class": name})
    assert "tokenizer-missing" not in {f.code for f in check(tmp_path).findings}


def test_sentencepiece_alone_is_not_numbered(tmp_path):
    """No guess is made of its ids; the template is still rendered."""
    right(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    put(tmp_path, "tokenizer.model", b"\x0a\x00")
    put(tmp_path, "chat_template.jinja", TEMPLATE)
    _, tokens, found = read(tmp_path)
    assert not tokens.whole
    assert not found
    assert check(tmp_path).findings == ()
