"""A toy encoder and a toy corpus for the study of encoders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from studies.encoders.data import SETS, Corpus, Pair  # noqa: E402 (after the skip)
from studies.encoders.settings import Settings, read_settings  # noqa: E402

WORDS = "red green blue one two three cat dog bird sun moon star".split()  # noqa: SIM905


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of one layer, 16 wide, and its tokenizer."""
    folder = tmp_path_factory.mktemp("toy") / "base"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = transformers.BertTokenizer(
        vocab={word: place for place, word in enumerate(vocabulary)}
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_corpus() -> Corpus:
    """Pairs of words: a query is two words, its document the same words in reverse."""
    pairs = [Pair(f"{a} {b}", f"{b} {a} {a}", f"group {a}") for a in WORDS[:6] for b in WORDS[6:]]
    train = {"code": pairs[::2], "medical": pairs[1::2]}
    return Corpus(train, {name: pairs[i::4] for i, name in enumerate(SETS)})


@pytest.fixture(scope="session")
def toy_settings() -> Settings:
    """The registered settings at toy size: 4 steps, two seeds of one arm."""
    settings = read_settings()
    course = replace(settings.course, steps=4, groups=2, warmup=1, rate=1e-2)
    arms = {"usual": 1e-2, "far": 2e-2}
    order = (("usual", 1), ("usual", 2), ("far", 1))
    return replace(settings, course=course, arms=arms, order=order, scales=(0.5,), resamples=50)
