"""The numbering of tokenizer classes, against transformers' own tokenizers."""

import json
import os

import pytest

from paramdelta.planning import languages
from paramdelta.planning.sentencepiece import pieces
from paramdelta.planning.tokenizer import read_vocabulary
from paramdelta.planning.tokenizerclasses import CLASSES, MODEL_TYPES
from tests.opening import files

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TEXT = [
    "the quick brown fox jumps over the lazy dog and runs to the river",
    "a model of language learns to predict the next word of a text",
    "we add what training changed to the weights of another base, 12,5 or 3,",
] * 50
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ODD = [*BERT, "a", "b", "\u2028", "c", "\x85", "d", "dup", "dup", "e", "\u3000f"]
WORDS = "\n".join(ODD).encode() + b"\n"
LETTERS = json.dumps({"a": 0, "b": 1, "ab": 2}).encode()
SPECIAL = json.dumps({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}).encode()
COUNTED = "tôi 12\na b 4\n\u2028x 3\n".encode()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """SentencePiece models by the special tokens that they have."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text").write_text("\n".join(TEXT))
    bert = {"control_symbols": ["[CLS]", "[SEP]"], "user_defined_symbols": ["[MASK]"]}
    kinds = {
        "fairseq": {},  # <unk> <s> </s>
        "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        "bert": {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, **bert},
        "bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 330},
    }
    for name, options in kinds.items():
        spm.SentencePieceTrainer.train(
            input=str(folder / "text"),
            model_prefix=str(folder / name),
            hard_vocab_limit=False,
            minloglevel=2,
            **{"vocab_size": 60, **options},
        )
    return {name: (folder / f"{name}.model").read_bytes() for name in kinds}


def both(folder, kind, model_type, contents, said=None):
    """What we and what transformers read from a folder: tokens by id."""
    hf = pytest.importorskip("transformers")
    said = {"tokenizer_class": f"{kind}Tokenizer", **(said or {})}
    config = {"model_type": model_type}
    contents = contents | {"tokenizer_config.json": said, "config.json": config}
    for name, data in contents.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    loaded = hf.AutoTokenizer.from_pretrained(folder)
    return read_vocabulary(files(folder), config, {}), loaded


def assert_same(ours, loaded):
    """Every id that transformers knows has a token that transformers gives this id, and no other
    id has one.
    """
    theirs = {}
    for token, token_id in loaded.get_vocab().items():
        theirs.setdefault(token_id, set()).add(token)
    assert ours.tokens.keys() == theirs.keys()
    assert [(i, t, theirs[i]) for i, t in ours.tokens.items() if t not in theirs[i]] == []


PIECES = [
    ("XLMRoberta", "xlm-roberta", "sentencepiece.bpe.model", "fairseq"),
    ("Camembert", "camembert", "sentencepiece.bpe.model", "fairseq"),
    ("MBart", "mbart", "sentencepiece.bpe.model", "fairseq"),
    ("MBart50", "mbart", "sentencepiece.bpe.model", "fairseq"),
    ("PLBart", "plbart", "sentencepiece.bpe.model", "fairseq"),
    ("SeamlessM4T", "seamless_m4t", "sentencepiece.bpe.model", "fairseq"),
    ("Barthez", "mbart", "sentencepiece.bpe.model", "fairseq"),
    ("LayoutXLM", "layoutlmv2", "sentencepiece.bpe.model", "fairseq"),
    ("T5", "t5", "spiece.model", "t5"),
    ("T5", "t5", "spiece.model", "fairseq"),
    ("Udop", "udop", "spiece.model", "t5"),
    ("Pegasus", "pegasus", "spiece.model", "t5"),
    ("BigBird", "big_bird", "spiece.model", "bert"),
    ("Albert", "albert", "spiece.model", "bert"),
    ("FNet", "fnet", "spiece.model", "bert"),
    ("Reformer", "reformer", "spiece.model", "fairseq"),
    ("DebertaV2", "deberta-v2", "spm.model", "bert"),
    ("BertGeneration", "bert-generation", "spiece.model", "fairseq"),
    ("SpeechT5", "speecht5", "spm_char.model", "fairseq"),
    ("Siglip", "siglip", "spiece.model", "t5"),
    ("Llama", "llama", "tokenizer.model", "bytes"),
    ("Llama", "mistral", "tokenizer.model", "bytes"),
    ("InternLM2", "internlm2", "tokenizer.model", "bytes"),
    ("GPTSw3", "gpt-sw3", "spiece.model", "bytes"),
]


@pytest.mark.hf
@pytest.mark.parametrize(("kind", "model_type", "file", "model"), PIECES)
def test_sentencepiece_classes(tmp_path, models, kind, model_type, file, model):
    """Ids as transformers gives them, for a repository with nothing but the model and a config."""
    assert_same(*both(tmp_path, kind, model_type, {file: models[model]}))


FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]
XLNET = ["<sep>", "<pad>", "<cls>", "<mask>", "<eop>", "<eod>"]


@pytest.mark.parametrize(
    ("kind", "front", "skip", "end"),
    [
        ("Nllb", FAIRSEQ, 3, [*languages.NLLB, "<mask>"]),
        ("XGLM", FAIRSEQ, 3, [f"<madeupword{i}>" for i in range(7)]),
        ("MLuke", FAIRSEQ, 3, ["<mask>", "<ent>", "<ent2>"]),
        ("XLNet", [], 0, XLNET),
        ("MT5", [], 0, [*(f"<extra_id_{i}>" for i in range(99, -1, -1)), "<pad>"]),
        ("Gemma", [], 0, ["<bos>", "<eos>", "<pad>"]),
        ("CodeLlama", [], 0, ["▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"]),
    ],
)
def test_classes_that_transformers_5_numbers_otherwise(tmp_path, models, kind, front, skip, end):
    """The ids of transformers 4.57, with which the models were made; 5.24 differs in some token.

    NLLB's languages stand before <mask>, as in fairseq and in the tokenizer.json of its models.
    """
    file = CLASSES[kind].files[0]
    (tmp_path / file).write_bytes(models["fairseq"])
    (tmp_path / "config.json").write_text("{}")
    found = read_vocabulary(files(tmp_path), {"tokenizer_class": f"{kind}Tokenizer"}, {})
    assert list(found.tokens.values()) == [*front, *pieces(models["fairseq"])[skip:], *end]


@pytest.mark.hf
@pytest.mark.parametrize(
    ("kind", "model_type", "contents", "said"),
    [
        ("BertJapanese", "bert", {"vocab.txt": WORDS}, {"word_tokenizer_type": "basic"}),
        ("ProphetNet", "prophetnet", {"prophetnet.tokenizer": WORDS}, {}),
        ("Esm", "esm", {"vocab.txt": b"<cls>\n<pad>\n<eos>\n<unk>\nA \n<mask>"}, {}),
        ("Phobert", "roberta", {"vocab.txt": COUNTED, "bpe.codes": b"a b 1\n"}, {}),
        ("Bertweet", "roberta", {"vocab.txt": COUNTED, "bpe.codes": b"a b 1\n"}, {}),
        ("Wav2Vec2CTC", "wav2vec2", {"vocab.json": {"<pad>": 0, "|": 1, "a": 2}}, {}),
        ("GPT2", "gpt2", {"vocab.json": LETTERS, "merges.txt": b"#version: 0.2\na b\n"}, {}),
        ("Roberta", "roberta", {"vocab.json": LETTERS, "merges.txt": b"#version: 0.2\na b\n"}, {}),
        ("Qwen2", "qwen2", {"vocab.json": LETTERS, "merges.txt": b"#version: 0.2\na b\n"}, {}),
        ("ByT5", "t5", {}, {}),
        ("Perceiver", "perceiver", {}, {}),
        ("Dia", "dia", {}, {}),
    ],
)
def test_other_classes(tmp_path, kind, model_type, contents, said):
    """Word lists, JSON objects and bytes, as transformers reads them."""
    assert_same(*both(tmp_path, kind, model_type, contents, said))


@pytest.mark.hf
@pytest.mark.parametrize("kind", ["Speech2Text", "Marian", "Bartpho"])
def test_classes_with_a_vocabulary_beside_the_pieces(tmp_path, models, kind):
    """The ids are those of the vocabulary and not the places of the pieces."""
    spm = dict.fromkeys(["sentencepiece.bpe.model", "source.spm", "target.spm"], models["fairseq"])
    words = {"vocab.json": SPECIAL, "dict.txt": COUNTED}
    types = {"Speech2Text": "speech_to_text", "Marian": "marian", "Bartpho": "mbart"}
    assert_same(*both(tmp_path, kind, types[kind], spm | words))


@pytest.mark.hf
def test_languages_of_m2m100(tmp_path, models):
    """They follow the vocabulary, although transformers' get_vocab does not list them."""
    contents = {"vocab.json": SPECIAL, "sentencepiece.bpe.model": models["fairseq"]}
    ours, loaded = both(tmp_path, "M2M100", "m2m_100", contents)
    assert ours.size == 5 + 100
    for token, token_id in ours.ids.items():
        assert loaded.convert_tokens_to_ids(token) == token_id


@pytest.mark.hf
@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Electra", "MobileBert", "LayoutLM"])
def test_bert_and_its_like(tmp_path, kind):
    """A line is a token; transformers 5 has the same ids, but strips white space off the tokens."""
    ours, loaded = both(tmp_path, kind, "bert", {"vocab.txt": WORDS})
    theirs = {token_id: token for token, token_id in loaded.get_vocab().items()}
    stripped = {i: token.rstrip() for i, token in ours.tokens.items()}
    assert {i: t for i, t in stripped.items() if t} == {i: t for i, t in theirs.items() if t}
    assert ours.tokens[7] == "\u2028"


@pytest.mark.hf
def test_added_tokens_of_a_python_tokenizer_keep_their_ids(tmp_path, models):
    """Those of others are numbered on, whatever id is stated."""
    added = {"added_tokens_decoder": {"90": {"content": "<x>", "special": True}}}
    size = len(pieces(models["fairseq"]))
    for kind, file, expected in (
        ("Siglip", "spiece.model", 90),
        ("Llama", "tokenizer.model", size),
    ):
        folder = tmp_path / kind
        folder.mkdir()
        ours, loaded = both(folder, kind, kind.lower(), {file: models["fairseq"]}, added)
        assert ours.ids["<x>"] == loaded.get_vocab()["<x>"] == expected


@pytest.mark.hf
@pytest.mark.parametrize("place", ["tokenizer_config.json", "special_tokens_map.json"])
def test_roles_that_no_vocabulary_has(tmp_path, place):
    """A token that only has a role is added by the loader, at the end."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")
    contents = {"tokenizer.json": tokenizers.Tokenizer(words).to_str().encode()}
    roles = {"eos_token": "<e>", "pad_token": "<p>", "bos_token": "b"}
    said = roles if place == "tokenizer_config.json" else {}
    contents |= {place: roles} if not said else {}
    ours, loaded = both(tmp_path, "PreTrained", "llama", contents, said)
    assert_same(ours, loaded)
    assert ours.tokens == {0: "a", 1: "b", 2: "<e>", 3: "<p>"}


def test_types_lead_to_known_classes():
    """Every class that a model type names is in the table; CANINE has no table of tokens."""
    assert set(MODEL_TYPES.values()) <= {*CLASSES, "Canine"}
