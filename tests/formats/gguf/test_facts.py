"""What metadata says, in the words of the small files."""

from array import array

import pytest

from paramdelta.errors import CheckpointError
from paramdelta.formats.gguf import facts
from paramdelta.formats.gguf.facts import small_files
from paramdelta.formats.gguf.names import ARCHITECTURES
from tests import ggufs


def files(said, architecture="qwen2", tied=True):
    """The small files of some metadata."""
    keys = {"general.architecture": architecture, **said}
    return small_files(keys, ARCHITECTURES[architecture], tied, "here")


def test_config():
    """Sizes, heads and positions under the keys of config.json; numbers as they were written."""
    said = {
        "qwen2.embedding_length": 64,
        "qwen2.attention.head_count": 4,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.attention.layer_norm_rms_epsilon": 9.999999974752427e-07,
        "qwen2.rope.freq_base": 1000000.0,
        "qwen2.feed_forward_length": array("I", [1, 2]),
        "tokenizer.ggml.eos_token_id": 7,
    }
    assert files(said)["config.json"] == {
        "model_type": "qwen2",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    }
    assert "model_type" not in files({}, "llama")["config.json"]  # Llama or Mistral


def test_roles_and_ends():
    """Roles by the tokens' texts; every token that ends a turn."""
    said = {**ggufs.vocabulary(8), "tokenizer.ggml.eot_token_id": 3}
    made = files(said)
    assert made["generation_config.json"] == {"eos_token_id": [6, 3], "pad_token_id": 7}
    assert made["config.json"]["eos_token_id"] == [6, 3]
    assert made["tokenizer_config.json"] == {
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "chat_template": "{{ messages }}<|end|>",
    }


def test_several_templates():
    """Named templates beside the usual one."""
    said = {"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b"}
    assert files(said)["tokenizer_config.json"]["chat_template"] == [
        {"name": "default", "template": "a"},
        {"name": "tool_use", "template": "b"},
    ]


def test_tokens():
    """Padding rows are no tokens; spaces of user-defined pieces are as in the tokenizer."""
    said = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "▁a", "  ", "[PAD4]", "a b"],
        "tokenizer.ggml.token_type": array("i", [2, 3, 1, 4, 5, 1]),
    }
    made = files(said)["tokenizer.json"]
    assert made["model"]["vocab"] == {"<unk>": 0, "<s>": 1, "▁a": 2, "▁▁": 3, "a b": 5}
    assert made["added_tokens"] == [
        {"id": 0, "content": "<unk>", "special": True},
        {"id": 1, "content": "<s>", "special": True},
        {"id": 3, "content": "▁▁", "special": False},
    ]
    assert "tokenizer.json" not in files({})


@pytest.mark.parametrize("ids", [-1, 8, "6", True, 2**40])
def test_ids_that_are_none(ids):
    """An id without a token gives no role."""
    made = files({**ggufs.vocabulary(8), "tokenizer.ggml.eos_token_id": ids})
    assert "eos_token" not in made["tokenizer_config.json"]
    assert "eos_token_id" not in made["config.json"]


def test_too_many_control_tokens(monkeypatch):
    """A file that would fill memory with them is refused."""
    monkeypatch.setattr(facts, "MOST_ADDED", 1)
    said = {**ggufs.vocabulary(8), "tokenizer.ggml.token_type": array("i", [3] * 8)}
    with pytest.raises(CheckpointError, match="control tokens"):
        files(said)
