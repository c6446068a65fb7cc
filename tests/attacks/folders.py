"""Small folders of which the fuzzer changes one file: a lineage, and outputs made from it."""

import json
import os
import tempfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np

from tests.checkpoints import save

HOME = b"@HOME@"
WORDS = ("<s>", "</s>", "<pad>", "a", "b", "c", "ab", "abc")
_WEIGHTS = {
    "model.embed_tokens.weight": (8, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.mlp.down_proj.weight": (4, 8),
    "model.norm.weight": (4,),
    "lm_head.weight": (8, 4),
}
_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_SPECIAL = [
    {"id": number, "content": word, "special": True, "single_word": False, "lstrip": False,
     "rstrip": False, "normalized": False}
    for number, word in enumerate(WORDS[:3])
]  # fmt: skip

FILES: dict[str, str] = {
    "config.json": json.dumps(
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8,
            "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 0,
            "eos_token_id": [1, 2], "tie_word_embeddings": False, "torch_dtype": "float32",
            "rope_scaling": None, "auto_map": {"AutoConfig": "code.Config"},
        }
    ),
    "generation_config.json": json.dumps({"eos_token_id": [1], "pad_token_id": 2, "top_p": 0.9}),
    "tokenizer.json": json.dumps(
        {
            "version": "1.0", "added_tokens": _SPECIAL, "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
            "model": {
                "type": "BPE", "vocab": {word: n for n, word in enumerate(WORDS)},
                "merges": ["a b", ["ab", "c"]],
            },
        }
    ),
    "tokenizer_config.json": json.dumps(
        {
            "tokenizer_class": "PreTrainedTokenizerFast", **_ROLES,
            "added_tokens_decoder": {str(entry["id"]): entry for entry in _SPECIAL},
            "chat_template": "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}",
        }
    ),
    "special_tokens_map.json": json.dumps(_ROLES),
    "README.md": "---\nlicense: apache-2.0\nlanguage: [en, de]\nbase_model: org/base\n"
    "tags:\n- text\nlicense_name: x\n---\n# A model\n\nText.\n",
    "LICENSE": "Apache License\n",
    "code.py": "from .other import x\n\n\nclass Config:\n    pass\n",
    "other.py": "x = 1\n",
}  # fmt: skip


def checkpoint(folder: Path, seed: int) -> Path:
    """A model of 128 numbers with all the files that a chat model has."""
    chance = np.random.default_rng(seed)
    tensors = {n: chance.normal(size=s).astype(np.float32) for n, s in _WEIGHTS.items()}
    save(folder, tensors)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@cache
def _home(kind: str) -> Path:
    """A folder with the three checkpoints; kept until the process ends."""
    home = Path(_kept().name) / kind
    for number, name in enumerate(("base", "post", "new")):
        checkpoint(home / name, number)
    return home


@cache
def _kept() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory()


def lineage_with(name: str, data: bytes) -> Path:
    """The three checkpoints; of one of them, post or the new base, a file has other contents."""
    home = _home("lineage-" + name)
    changed = ("post", "new")[zlib.crc32(data) & 1]
    for role in ("post", "new"):
        (home / role / name).write_bytes(data if role == changed else FILES[name].encode())
    return home


def model_with(name: str, data: bytes) -> Path:
    """One checkpoint with other contents of a file."""
    home = _home("model-" + name)
    (home / "new" / name).write_bytes(data)
    return home / "new"


@cache
def _output(kind: str) -> Path:
    """The record of an output with its sources beside it. ``kind``: "mix", "delta" or "lora"."""
    import paramdelta
    from paramdelta import api
    from paramdelta.recipe import Delta, Recipe

    home = _home(kind)
    post, base, out = home / "post", home / "base", home / "out"
    if kind == "mix":
        paramdelta.mix(Recipe(home / "new", (Delta(post, base),)), out)
    elif kind == "delta":
        api.extract((str(post), str(base)), out)
    else:
        api.extract_adapter((str(post), str(base)), out, rank=2)
    (record,) = out.glob("paramdelta.*.json")
    return record


@cache
def record(kind: str) -> bytes:
    """The record of an output, with HOME in the place of the folder that holds all."""
    path = _output(kind)
    return path.read_bytes().replace(os.fsencode(path.parents[1]), HOME)


def output_with(kind: str, data: bytes) -> Path:
    """An output with another record."""
    path = _output(kind)
    path.write_bytes(data.replace(HOME, os.fsencode(path.parents[1])))
    return path.parent
