"""Tokenizer classes with a known numbering: which file each class reads, and how.

A tokenizer.json states which token has which id. Many older files do not: the rules are in the code
of the tokenizer class. The tables follow transformers 4.57, the last version in which every class
gives the ids that its models were trained with, and were compared with 5.24. Other classes are not
guessed.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from paramdelta.planning import languages
from paramdelta.planning.bytelevel import plain_bytes
from paramdelta.planning.facts import token_text
from paramdelta.planning.sentencepiece import Numbering, pieces
from paramdelta.planning.vocabtable import NumberingError, checked_ids
from paramdelta.planning.wordlist import counted_words, stripped_words, words

Said = Mapping[str, Any]
"""The content of tokenizer_config.json."""

Layout = Callable[[Any, Said], dict[str, int]]
"""``layout(content, said)``: ids by token. ``content``: the bytes of a text or SentencePiece file,
or the object in a JSON file; None where the class reads no file."""

PIECE_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
    "spm_char.model",
    "prophetnet.tokenizer",
    "source.spm",
)


@dataclass(frozen=True)
class TokenizerClass:
    """What a tokenizer class reads.

    ``files``: names of the vocabulary file, the first that is there counts; () if the class needs
    none. ``roles``: its default special tokens by role; ``more``: further default ones.
    ``counts``: as in `Table`.
    """

    layout: Layout
    files: tuple[str, ...]
    roles: Mapping[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    counts: bool = True


# -- layouts ---------------------------------------------------------------------------------------

FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
CAMEMBERT = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")
PROPHETNET = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *(f"[unused{i}]" for i in range(10)))


def _pieces(numbering: Numbering, data: bytes, said: Said) -> dict[str, int]:
    return numbering.ids(pieces(data))


_in_order: Layout = partial(_pieces, Numbering())  # a piece's place is its id


def _fairseq(*end: str) -> Layout:
    """Four tokens in front of the pieces from number 3 on, and tokens at the end."""
    return partial(_pieces, Numbering(FAIRSEQ, 3, end))


def _plbart(data: bytes, said: Said) -> dict[str, int]:
    base = said.get("language_codes", "base") == "base"
    end = (*languages.PLBART, "<mask>") if base else languages.PLBART_MULTI
    return Numbering(FAIRSEQ, 3, end).ids(pieces(data))


def _t5(data: bytes, said: Said) -> dict[str, int]:
    """Sentinels at the end, the first of them last."""
    count = _count(said, "extra_ids", 100)
    return Numbering(end=tuple(f"<extra_id_{i}>" for i in reversed(range(count)))).ids(pieces(data))


def _pegasus(data: bytes, said: Said) -> dict[str, int]:
    """Masks and unused tokens up to ``offset``; the pieces from number 2 on follow."""
    offset = _count(said, "offset", 103)
    front = [
        token_text(said.get("pad_token")) or "<pad>",
        token_text(said.get("eos_token")) or "</s>",
    ]
    sentence = said.get("mask_token_sent", "<mask_1>")
    if sentence is not None:
        front += [
            token_text(sentence) or "<mask_1>",
            token_text(said.get("mask_token")) or "<mask_2>",
        ]
    front += [f"<unk_{i}>" for i in range(2, offset)]
    return Numbering(tuple(front), 2, at=offset + 2).ids(pieces(data))


def _m2m100(vocabulary: Mapping[str, Any], said: Said) -> dict[str, int]:
    """Languages follow the vocabulary, whatever the tokenizer's ``get_vocab`` shows."""
    ids = checked_ids(vocabulary)
    wmt = said.get("language_codes") == "wmt21"
    codes = languages.WMT21 if wmt else languages.M2M100
    return ids | {f"__{code}__": len(ids) + number for number, code in enumerate(codes)}


def _object(vocabulary: Mapping[str, Any], said: Said) -> dict[str, int]:
    """``{token: id}``, or by language; ``target_lang`` says which."""
    if vocabulary and all(isinstance(inner, Mapping) for inner in vocabulary.values()):
        language = str(said.get("target_lang"))
        if language not in vocabulary:
            raise NumberingError(
                f"it holds {len(vocabulary)} languages, and tokenizer_config.json does not say "
                f"which one counts (target_lang: {language})"
            )
        vocabulary = vocabulary[language]
    return checked_ids(vocabulary)


def _words(data: bytes, said: Said) -> dict[str, int]:
    """Lines, unless transformers 4 and 5 disagree where they end."""
    if re.search(rb"\r(?!\n)", data):
        raise NumberingError("it has carriage returns at which only some loaders end a line")
    return words(data)


def _japanese(data: bytes, said: Said) -> dict[str, int]:
    split = said.get("subword_tokenizer_type") == "sentencepiece"
    return Numbering().ids(pieces(data)) if split else words(data)


def _count(said: Said, key: str, default: int) -> int:
    value = said.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65_536:
        raise ValueError(f"tokenizer_config.json says {key}: {value!r}")
    return value


# -- classes ---------------------------------------------------------------------------------------


def _roles(text: str) -> dict[str, str]:
    """Roles from ``"eos=</s> pad=<pad>"``."""
    pairs = (part.split("=", 1) for part in text.split())
    return {f"{role}_token": token for role, token in pairs}


_BERT = _roles("unk=[UNK] sep=[SEP] pad=[PAD] cls=[CLS] mask=[MASK]")
_ROBERTA = _roles("bos=<s> eos=</s> unk=<unk> sep=</s> pad=<pad> cls=<s> mask=<mask>")
_NO_MASK = {role: token for role, token in _ROBERTA.items() if role != "mask_token"}
_PLAIN = _roles("bos=<s> eos=</s> unk=<unk>")
_ALBERT = _roles("bos=[CLS] eos=[SEP] unk=<unk> sep=[SEP] pad=<pad> cls=[CLS] mask=[MASK]")
_DEBERTA = _ALBERT | _roles("unk=[UNK] pad=[PAD]")
_XLNET = _roles("bos=<s> eos=</s> unk=<unk> sep=<sep> pad=<pad> cls=<cls> mask=<mask>")
_T5 = _roles("eos=</s> unk=<unk> pad=<pad>")

_LINES = """
Bert ConvBert DistilBert DPRContextEncoder DPRQuestionEncoder DPRReader Electra ErnieM LayoutLM
LayoutLMv2 Lxmert MobileBert Realm RetriBert RoCBert RoFormer SqueezeBert Tapas
"""

_SENTENCEPIECE: dict[str, tuple[Layout, str, Mapping[str, str], tuple[str, ...]]] = {
    "Albert": (_in_order, "spiece.model", _ALBERT, ()),
    "Baichuan": (_in_order, "tokenizer.model", _PLAIN, ()),
    "Barthez": (_in_order, "sentencepiece.bpe.model", _ROBERTA, ()),
    "BertGeneration": (
        _in_order,
        "spiece.model",
        _PLAIN | _roles("sep=<::::> pad=<pad>"),
        (),
    ),
    "BigBird": (
        _in_order,
        "spiece.model",
        _ALBERT | _roles("bos=<s> eos=</s>"),
        (),
    ),
    "Camembert": (
        partial(_pieces, Numbering(CAMEMBERT, 1, ("<mask>",))),
        "sentencepiece.bpe.model",
        _ROBERTA,
        (),
    ),
    "CodeLlama": (
        _in_order,
        "tokenizer.model",
        _PLAIN,
        ("▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"),
    ),
    "Cpm": (_in_order, "spiece.model", _XLNET, ("<eop>", "<eod>")),
    "DebertaV2": (_in_order, "spm.model", _DEBERTA, ()),
    "FNet": (
        _in_order,
        "spiece.model",
        _roles("unk=<unk> sep=[SEP] pad=<pad> cls=[CLS] mask=[MASK]"),
        (),
    ),
    "Gemma": (
        _in_order,
        "tokenizer.model",
        _roles("bos=<bos> eos=<eos> unk=<unk> pad=<pad>"),
        (),
    ),
    "InternLM": (_in_order, "tokenizer.model", _PLAIN, ()),
    "InternLM2": (_in_order, "tokenizer.model", _PLAIN, ()),
    "LayoutXLM": (_fairseq("<mask>"), "sentencepiece.bpe.model", _ROBERTA, ()),
    "Llama": (_in_order, "tokenizer.model", _PLAIN, ()),
    "MBart": (_fairseq(*languages.MBART, "<mask>"), "sentencepiece.bpe.model", _ROBERTA, ()),
    "MBart50": (_fairseq(*languages.MBART50, "<mask>"), "sentencepiece.bpe.model", _ROBERTA, ()),
    # The languages come before <mask>, as in fairseq and in the tokenizer.json of facebook/nllb.
    "Nllb": (_fairseq(*languages.NLLB, "<mask>"), "sentencepiece.bpe.model", _ROBERTA, ()),
    "Pegasus": (_pegasus, "spiece.model", _T5, ()),
    "PLBart": (_plbart, "sentencepiece.bpe.model", _NO_MASK, ()),
    "Reformer": (_in_order, "spiece.model", _roles("eos=</s> unk=<unk>"), ()),
    "RemBert": (_in_order, "sentencepiece.model", _DEBERTA, ()),
    "SeamlessM4T": (
        partial(_pieces, Numbering(("<pad>", "<unk>", "<s>", "</s>"), 3)),
        "sentencepiece.bpe.model",
        _NO_MASK,
        (),
    ),
    "T5": (_t5, "spiece.model", _T5, ()),
    "MT5": (_t5, "spiece.model", _T5, ()),
    "Udop": (_in_order, "spiece.model", _T5, ()),
    "XGLM": (
        _fairseq(*(f"<madeupword{i}>" for i in range(7))),
        "sentencepiece.bpe.model",
        _NO_MASK,
        (),
    ),
    "XLMProphetNet": (
        partial(_pieces, Numbering(PROPHETNET, 3)),
        "prophetnet.tokenizer",
        _BERT | _roles("bos=[SEP] eos=[SEP]"),
        (),
    ),
    "XLMRoberta": (_fairseq("<mask>"), "sentencepiece.bpe.model", _ROBERTA, ()),
    "XLNet": (_in_order, "spiece.model", _XLNET, ("<eop>", "<eod>")),
}

# Python tokenizers: ids that files state for added tokens are kept.
_SLOW: dict[str, tuple[Layout, str, Mapping[str, str], tuple[str, ...]]] = {
    "Bartpho": (
        lambda data, said: counted_words(data, FAIRSEQ, first_word=True),
        "dict.txt",
        _ROBERTA,
        (),
    ),
    "Bertweet": (lambda data, said: counted_words(data, FAIRSEQ), "vocab.txt", _ROBERTA, ()),
    "CpmAnt": (_words, "vocab.txt", _T5 | _roles("bos=<s>"), ()),
    "Esm": (
        lambda data, said: stripped_words(data),
        "vocab.txt",
        _roles("eos=<eos> unk=<unk> pad=<pad> cls=<cls> mask=<mask>"),
        (),
    ),
    "GPTNeoXJapanese": (_words, "vocab.txt", {}, ()),
    "GPTSw3": (
        _in_order,
        "spiece.model",
        _roles("bos=<s> eos=<|endoftext|> unk=<unk> pad=<pad>"),
        (),
    ),
    "M2M100": (_m2m100, "vocab.json", _NO_MASK, ()),
    "Marian": (_object, "vocab.json", _T5, ()),
    "MLuke": (_fairseq("<mask>"), "sentencepiece.bpe.model", _ROBERTA, ("<ent>", "<ent2>")),
    "Phobert": (lambda data, said: counted_words(data, FAIRSEQ), "vocab.txt", _ROBERTA, ()),
    "ProphetNet": (_words, "prophetnet.tokenizer", _BERT, ()),
    "Siglip": (
        _in_order,
        "spiece.model",
        _roles("eos=</s> unk=<unk> pad=</s>"),
        (),
    ),
    "Speech2Text": (_object, "vocab.json", _T5 | _roles("bos=<s>"), ()),
    "SpeechT5": (_in_order, "spm_char.model", _PLAIN | _roles("pad=<pad>"), ()),
    "Wav2Vec2CTC": (_object, "vocab.json", _PLAIN | _roles("pad=<pad>"), ()),
    "Wav2Vec2PhonemeCTC": (_object, "vocab.json", _PLAIN | _roles("pad=<pad>"), ()),
}

_OBJECTS = {
    "Luke": (_ROBERTA, ("<ent>", "<ent2>")),
    "Qwen2": (_roles("eos=<|endoftext|> unk=<|endoftext|> pad=<|endoftext|>"), ()),
    **dict.fromkeys(
        ("Bart", "Blenderbot", "Herbert", "LayoutLMv3", "LED", "Longformer", "Mvp", "Roberta"),
        (_ROBERTA, ()),
    ),
    **dict.fromkeys(
        ("CodeGen", "GPT2", "Whisper"),
        (_roles("bos=<|endoftext|> eos=<|endoftext|> unk=<|endoftext|>"), ()),
    ),
}


def _byt5(content: None, said: Said) -> dict[str, int]:
    extra = [f"<extra_id_{i}>" for i in range(_count(said, "extra_ids", 125) or 125)]
    return plain_bytes(("<pad>", "</s>", "<unk>"), extra)


CLASSES: Mapping[str, TokenizerClass] = {
    **{name: TokenizerClass(_words, ("vocab.txt",), _BERT) for name in _LINES.split()},
    "BertJapanese": TokenizerClass(_japanese, ("vocab.txt", "spiece.model"), _BERT, counts=False),
    "Funnel": TokenizerClass(_words, ("vocab.txt",), _XLNET),
    "MPNet": TokenizerClass(_words, ("vocab.txt",), _ROBERTA | _roles("unk=[UNK]")),
    "Splinter": TokenizerClass(_words, ("vocab.txt",), _BERT, ("[QUESTION]",)),
    **{
        name: TokenizerClass(layout, (file, *PIECE_FILES), roles, more)
        for name, (layout, file, roles, more) in _SENTENCEPIECE.items()
    },
    **{
        name: TokenizerClass(layout, (file,), roles, more, counts=False)
        for name, (layout, file, roles, more) in _SLOW.items()
    },
    **{
        name: TokenizerClass(_object, ("vocab.json",), roles, more)
        for name, (roles, more) in _OBJECTS.items()
    },
    "ByT5": TokenizerClass(_byt5, (), counts=False),
    "MyT5": TokenizerClass(_byt5, (), counts=False),
    "Perceiver": TokenizerClass(
        lambda content, said: plain_bytes(("[PAD]", "[BOS]", "[EOS]", "[MASK]", "[CLS]", "[SEP]")),
        (),
        counts=False,
    ),
    "Dia": TokenizerClass(
        lambda content, said: plain_bytes(("<pad>", "[S1]", "[S2]"), first=3), (), counts=False
    ),
}
"""By the name of the class without "Tokenizer" and "Fast"."""

OBJECT = TokenizerClass(_object, ("vocab.json", "encoder.json"))
"""Any other class that has a file ``{token: id}``, which says itself what the ids are."""

PIECES = TokenizerClass(_in_order, PIECE_FILES, _PLAIN)
"""The general class of transformers ("TokenizersBackend") with a SentencePiece model."""

UNKNOWN = TokenizerClass(_object, ())
"""Where the class does not matter: it has no special tokens of its own."""

CODED_SPECIALS: Mapping[str, tuple[str, ...]] = {
    "QWen": (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *(f"<|extra_{i}|>" for i in range(205)),
    ),
}
"""Special tokens that a class with a tiktoken file has in its code; they follow those of the file.
Source: tokenization_qwen.py in Qwen/Qwen-7B."""

GENERAL = ("PreTrained", "TokenizersBackend", "PythonBackend", "SentencePieceBackend")

TWO_VOCABULARIES = ("vocab-src.json", "vocab-tgt.json", "target_vocab.json")
"""Files of models whose encoder and decoder have vocabularies of their own."""

# -- model types -----------------------------------------------------------------------------------

MODEL_TYPES: Mapping[str, str] = {
    model_type: name
    for name, types in {
        "Albert": "albert nystromformer yoso",
        "Bert": "align bark bert blip bros chinese_clip ernie git grounding-dino megatron-bert "
        "mm-grounding-dino nezha qdqbert tvp vilt visual_bert",
        "BertGeneration": "bert-generation",
        "BigBird": "big_bird",
        "ByT5": "byt5",
        "Camembert": "camembert",
        "Canine": "canine",
        "CodeLlama": "code_llama",
        "ConvBert": "convbert",
        "Cpm": "cpm",
        "CpmAnt": "cpmant",
        "DPRQuestionEncoder": "dpr",
        "DebertaV2": "deberta-v2",
        "Dia": "dia",
        "DistilBert": "distilbert",
        "Electra": "electra",
        "ErnieM": "ernie_m",
        "Esm": "esm",
        "FNet": "fnet",
        "Funnel": "funnel",
        "GPTNeoXJapanese": "gpt_neox_japanese",
        "GPTSw3": "gpt-sw3",
        "Gemma": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text paligemma recurrent_gemma "
        "shieldgemma2 siglip2 t5gemma",
        "LayoutLM": "layoutlm",
        "LayoutLMv2": "layoutlmv2",
        "Llama": "aria arcee chameleon deepseek_v2 deepseek_v3 diffllama idefics idefics2 jamba "
        "jetmoe llama llava llava_next mistral mixtral persimmon phi3 phimoe video_llava vipllava "
        "zamba zamba2",
        "Luke": "luke",
        "Lxmert": "lxmert",
        "M2M100": "m2m_100",
        "MBart": "mbart",
        "MPNet": "mpnet",
        "MT5": "mt5",
        "Marian": "marian",
        "MobileBert": "mobilebert",
        "Nllb": "nllb-moe",
        "PLBart": "plbart",
        "Pegasus": "bigbird_pegasus pegasus pegasus_x",
        "Perceiver": "perceiver",
        "ProphetNet": "prophetnet",
        "Realm": "realm",
        "Reformer": "reformer",
        "RemBert": "rembert",
        "RetriBert": "retribert",
        "RoCBert": "roc_bert",
        "RoFormer": "roformer",
        "SeamlessM4T": "seamless_m4t seamless_m4t_v2",
        "Siglip": "siglip",
        "Speech2Text": "speech_to_text",
        "SpeechT5": "speecht5",
        "Splinter": "splinter",
        "SqueezeBert": "squeezebert",
        "T5": "longt5 musicgen musicgen_melody pix2struct switch_transformers t5 umt5",
        "Tapas": "tapas",
        "Udop": "udop",
        "Wav2Vec2CTC": "data2vec-audio hubert wav2vec2 wav2vec2-bert wav2vec2-conformer",
        "XGLM": "xglm",
        "XLMProphetNet": "xlm-prophetnet",
        "XLMRoberta": "kosmos-2 metaclip_2 xlm-roberta xlm-roberta-xl xmod",
        "XLNet": "xlnet",
    }.items()
    for model_type in types.split()
}
"""By ``model_type`` of config.json the class, as transformers 4.57 chooses it where
tokenizer_config.json names none."""


def class_name(said: Said, config: Mapping[str, Any]) -> str:
    """The tokenizer class without "Tokenizer" and "Fast", "" if nothing says which it is.

    tokenizer_config.json, config.json and the model type tell, in this order.
    """
    for place in (said, config):
        name = place.get("tokenizer_class")
        if isinstance(name, str) and name:
            return name.removesuffix("Fast").removesuffix("Tokenizer")
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, Mapping) else {}):
        if (found := MODEL_TYPES.get(str(place.get("model_type")))) is not None:
            return found
    return ""
