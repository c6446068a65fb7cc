"""Which token has which id, from the files of a folder; and when that is not known."""

import base64
import json

import pytest

from paramdelta.errors import CheckpointError
from paramdelta.planning import tokenizer
from paramdelta.planning.bytelevel import spelled
from paramdelta.planning.tokenizer import is_tokenizer_file, is_vocabulary_file, read_vocabulary
from paramdelta.planning.vocabulary import Opaque, Vocabulary
from tests.opening import files
from tests.planning.test_sentencepiece import model

FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]


def read(folder, contents, config=None, known=None):
    """The vocabulary of a folder with these files; objects are written as JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
    (folder / "weights.bin").touch()  # beside a single file there are no others
    return read_vocabulary(files(folder), config or {}, {} if known is None else known)


def texts(vocabulary):
    """The tokens in the order of their ids, which have no gap."""
    assert isinstance(vocabulary, Vocabulary), vocabulary
    assert sorted(vocabulary.tokens) == list(range(vocabulary.size))
    return [vocabulary.tokens[i] for i in range(vocabulary.size)]


def fast(tokens, **more):
    """A tokenizer.json of these tokens."""
    return {"model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}}, **more}


PIECES = ["<unk>", "<s>", "</s>", "▁a", "b"]


@pytest.mark.parametrize(
    ("said", "config", "expected"),
    [
        ({"tokenizer_class": "XLMRobertaTokenizer"}, {}, [*FAIRSEQ, "▁a", "b", "<mask>"]),
        ({"tokenizer_class": "XLMRobertaTokenizerFast"}, {}, [*FAIRSEQ, "▁a", "b", "<mask>"]),
        ({}, {"model_type": "xlm-roberta"}, [*FAIRSEQ, "▁a", "b", "<mask>"]),
        ({}, {"tokenizer_class": "XLMRobertaTokenizer"}, [*FAIRSEQ, "▁a", "b", "<mask>"]),
        ({"tokenizer_class": "LlamaTokenizer"}, {"model_type": "xlm-roberta"}, PIECES),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, {}, PIECES),
        ({}, {"model_type": "new", "text_config": {"model_type": "llama"}}, PIECES),
    ],
)
def test_the_class_numbers_the_pieces(tmp_path, said, config, expected):
    """The same file, by the class that tokenizer_config.json, config.json or the type name."""
    contents = {"sentencepiece.bpe.model": model(PIECES), "tokenizer_config.json": said}
    assert texts(read(tmp_path, contents, config)) == expected


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "spm.model", "source.spm"])
def test_sentencepiece_files_of_any_name(tmp_path, name):
    """The file may have another name than the class usually gives it."""
    said = {"tokenizer_class": "T5Tokenizer", "extra_ids": 2}
    found = read(tmp_path, {name: model(PIECES), "tokenizer_config.json": said})
    assert texts(found) == [*PIECES, "<extra_id_1>", "<extra_id_0>", "<pad>"]


@pytest.mark.parametrize("said", [{}, {"tokenizer_class": "ChatGLMTokenizer"}])
@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt", "dict.txt"])
def test_an_unknown_class_is_not_guessed_at(tmp_path, said, name):
    """Where only the class knows the ids: the same for equal files, and for no others."""
    contents = {name: model(PIECES), "tokenizer_config.json": said}
    one = read(tmp_path / "one", contents)
    same = read(tmp_path / "same", contents)
    more = read(tmp_path / "more", contents | {"added_tokens.json": {"x": 5}})
    other = read(tmp_path / "other", contents | {name: model([*PIECES, "c"])})
    assert isinstance(one, Opaque)
    assert name in one.why
    assert (str(said.get("tokenizer_class")) in one.why) is bool(said)
    assert one == same
    assert one.digest not in {more.digest, other.digest}


def test_files_that_state_ids_need_no_class(tmp_path):
    """tokenizer.json, {token: id}, tiktoken's ranks, RWKV's lines: whatever the class."""
    said = {"tokenizer_class": "UnheardOfTokenizer"}
    for name, content in {
        "tokenizer.json": fast(["a", "b"]),
        "vocab.json": {"b": 1, "a": 0},
        "encoder.json": {"b": 1, "a": 0},
        "rwkv_vocab_v20230424.txt": b"0 'a' 1\n1 'b' 1\n",
    }.items():
        contents = {name: content, "tokenizer_config.json": said}
        assert texts(read(tmp_path / name, contents)) == ["a", "b"], name


def test_tokenizer_json_comes_first(tmp_path):
    """Beside older files, which may number otherwise; but no file is read for plain bytes."""
    older = {"vocab.txt": b"x\ny\n", "spiece.model": model(PIECES)}
    contents = {"tokenizer.json": fast(["a", "b"]), **older}
    assert texts(read(tmp_path, contents)) == ["a", "b"]
    plain = read(tmp_path, {"tokenizer_config.json": {"tokenizer_class": "ByT5Tokenizer"}})
    assert (plain.size, plain.tokens[3 + ord("a")]) == (384, "a")


def test_one_tokenizer_json_is_parsed_once(tmp_path, monkeypatch):
    """Equal files of several checkpoints, with other tokens added to each."""
    calls = []
    table = tokenizer.tokenizer_table
    monkeypatch.setattr(
        tokenizer, "tokenizer_table", lambda content: calls.append(1) or table(content)
    )
    known = {}
    for number in range(3):
        more = {"tokenizer_config.json": {"eos_token": f"<{number}>"}}
        contents = {"tokenizer.json": fast(["a"])} | more
        assert texts(read(tmp_path / str(number), contents, known=known)) == ["a", f"<{number}>"]
    assert len(calls) == 1


def entry(token, special=True):
    """An added token as tokenizer_config.json writes it."""
    return {"content": token, "special": special}


@pytest.mark.parametrize(
    "added",
    [
        {"added_tokens.json": {"<y>": 3, "<x>": 2}},
        {"tokenizer_config.json": {"added_tokens_decoder": {"3": entry("<y>"), "2": entry("<x>")}}},
        {"tokenizer_config.json": {"eos_token": "<y>", "bos_token": entry("<x>")}},
        {"special_tokens_map.json": {"eos_token": entry("<x>"), "pad_token": "<y>"}},
        {"special_tokens_map.json": {"additional_special_tokens": ["<x>", entry("<y>")]}},
        {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<x>", "b": "<y>"}}},
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "words",
    [
        {"tokenizer.json": fast(["a", "b"])},
        {"vocab.json": {"a": 0, "b": 1}},
    ],
    ids=list,
)
def test_tokens_that_stand_elsewhere(tmp_path, words, added):
    """Tokens that only another file names follow the others, and are special."""
    found = read(tmp_path, words | added)
    assert texts(found) == ["a", "b", "<x>", "<y>"]
    assert found.special == {2, 3}


def test_files_that_a_decoder_hides(tmp_path):
    """With added_tokens_decoder, transformers reads neither of the two older files."""
    contents = {
        "tokenizer.json": fast(["a"]),
        "tokenizer_config.json": {"added_tokens_decoder": {"1": entry("<x>", special=False)}},
        "added_tokens.json": {"<y>": 2},
        "special_tokens_map.json": {"additional_special_tokens": ["<z>"]},
    }
    found = read(tmp_path, contents)
    assert texts(found) == ["a", "<x>"]
    assert not found.special


def ranks(*tokens):
    """A tiktoken file."""
    return b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens))


def test_tiktoken_and_its_special_tokens(tmp_path):
    """Written as byte-level BPE; ids up to the last added token that have no name are reserved."""
    words = ranks(b" a", b"\xff")
    said = {"added_tokens_decoder": {"4": entry("<end>")}}
    expected = ["Ġa", spelled(b"\xff"), "<|reserved_token_2|>", "<|reserved_token_3|>", "<end>"]
    for name in ("tokenizer.model", "tiktoken.model", "kimi.tiktoken"):
        contents = {name: words, "tokenizer_config.json": {"tokenizer_class": "TikTokenTokenizer"}}
        contents["tokenizer_config.json"] |= said
        assert texts(read(tmp_path / name, contents)) == expected
    qwen = {"qwen.tiktoken": words, "tokenizer_config.json": {"tokenizer_class": "QWenTokenizer"}}
    assert texts(read(tmp_path / "qwen", qwen))[2:5] == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    coded = {"x.tiktoken": words, "tokenizer_config.json": {"tokenizer_class": "OtherTokenizer"}}
    assert isinstance(read(tmp_path / "coded", coded), Opaque)


def test_tekken(tmp_path):
    """Special tokens first; a file of an older version is a clear error."""
    content = {
        "config": {"default_num_special_tokens": 2},
        "special_tokens": [{"rank": 0, "token_str": "<s>"}],
        "vocab": [{"rank": 0, "token_bytes": base64.b64encode(b" a").decode()}],
    }
    found = read(tmp_path, {"tekken.json": content})
    assert texts(found) == ["<s>", "<SPECIAL_1>", "Ġa"]
    assert found.special == {0, 1}
    with pytest.raises(CheckpointError, match=r"(?s)tekken\.json.*special_tokens"):
        read(tmp_path, {"tekken.json": {"config": {}, "vocab": []}})


def test_vocabularies_by_language(tmp_path):
    """MMS: tokenizer_config.json says which language counts; without it nothing is known."""
    nested = {"eng": {"a": 0, "b": 1}, "fra": {"b": 0, "a": 1}}
    said = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "a", "unk_token": "a"}
    said |= {"bos_token": "a", "eos_token": "a"}
    contents = {"vocab.json": nested, "tokenizer_config.json": {**said, "target_lang": "fra"}}
    assert texts(read(tmp_path / "fra", contents)) == ["b", "a"]
    contents = {"vocab.json": nested, "tokenizer_config.json": said}
    assert "2 languages" in read(tmp_path / "none", contents).why


@pytest.mark.parametrize(
    ("contents", "config"),
    [
        ({"vocab-src.json": {"a": 0}, "vocab-tgt.json": {"b": 0}}, {"model_type": "fsmt"}),
        (
            {
                "vocab.json": {"a": 0},
                "target_vocab.json": {"b": 0},
                "tokenizer_config.json": {"separate_vocabs": True},
            },
            {"model_type": "marian"},
        ),
        ({"tokenizer_config.json": {}}, {"model_type": "canine"}),
        ({"vocab.txt": b"a\rb\n"}, {"model_type": "bert"}),
    ],
    ids=["fsmt", "marian", "canine", "carriage return"],
)
def test_what_cannot_be_told(tmp_path, contents, config):
    """Two vocabularies, no table at all, and a line end on which loaders disagree."""
    assert isinstance(read(tmp_path, contents, config), Opaque)


def test_nothing_to_read(tmp_path):
    """No vocabulary: None; template and roles alone are none."""
    assert read(tmp_path, {"tokenizer_config.json": {"chat_template": "x"}}) is None
    assert read(tmp_path, {"added_tokens.json": {"a": 1}}, {"model_type": "llama"}) is None


@pytest.mark.parametrize(
    "contents",
    [
        {"tokenizer.json": {"model": {"vocab": {"a": 10**12}}}},
        {"tokenizer.json": {"model": {"vocab": {"a": -1}}}},
        {"tokenizer.json": {"model": {"vocab": {"a": True}}}},
        {"tokenizer.json": {"model": {"vocab": [1]}}},
        {"tokenizer.json": {"model": []}},
        {"tokenizer.json": {"model": {"vocab": {}}, "added_tokens": 3}},
        {"tokenizer.json": b'{"model": {"vocab": {"a": Infinity}}}'},
        {"tokenizer.json": b"{"},
        {"vocab.json": {"a": 1e300}},
        {"vocab.json": b'{"a": NaN}'},
        {"vocab.json": [1, 2]},
        {"vocab.json": {"a": 0}, "added_tokens.json": {"b": 10**12}},
        {"vocab.json": {"a": 0}, "added_tokens.json": {"b": "1"}},
        {
            "vocab.json": {"a": 0},
            "tokenizer_config.json": {"added_tokens_decoder": {"x": entry("<b>")}},
        },
        {"vocab.json": {"a": 0}, "tokenizer_config.json": {"added_tokens_decoder": {"1": 7}}},
        {"vocab.json": {"a": 0}, "tokenizer_config.json": {"added_tokens_decoder": [1]}},
        {"tokenizer.model": b"\x0a\x80", "tokenizer_config.json": {"tokenizer_class": "Llama"}},
        {
            "spiece.model": model(PIECES),
            "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "extra_ids": 10**12},
        },
        {"x.tiktoken": ranks(b"a") + b"YQ== 99999999999999999999999999\n"},
        {
            "x.tiktoken": ranks(b"a"),
            "tokenizer_config.json": {"added_tokens_decoder": {"16000000": entry("<x>")}},
        },
        {"rwkv_vocab_v20230424.txt": b"999999999 'a' 1\n"},
        {"vocab.txt": b"\xff\n", "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}},
    ],
    ids=lambda c: " ".join(f"{k}={str(v)[:40]}" for k, v in c.items()),
)
def test_hostile_files_are_refused_with_their_place(tmp_path, contents):
    """Ids that are no rows, and other nonsense: an error that names the file, at once."""
    with pytest.raises(CheckpointError) as error:
        read(tmp_path, contents)
    assert any(name in str(error.value) for name in contents)
    assert error.value.got


VOCABULARY_FILES = """
tokenizer.json tokenizer.model tokenizer.model.v3 spiece.model sentencepiece.bpe.model spm.model
source.spm qwen.tiktoken tiktoken.model tekken.json vocab.json vocab.txt merges.txt bpe.codes
dict.txt target_vocab.json vocab-src.json prophetnet.tokenizer rwkv_vocab_v20230424.txt
"""


@pytest.mark.parametrize("name", VOCABULARY_FILES.split())
def test_names_of_vocabulary_files(name):
    """Files that have to come along with a tokenizer."""
    assert is_vocabulary_file(name)
    assert is_tokenizer_file(name)


def test_names_of_other_files():
    """Roles and added tokens belong to a tokenizer, and hold no vocabulary; configs do not."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        assert is_tokenizer_file(name)
        assert not is_vocabulary_file(name)
    assert not any(map(is_tokenizer_file, ("config.json", "README.md", "1_Pooling/config.json")))
