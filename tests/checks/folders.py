"""A small right checkpoint, written by hand, for tests that break it in one place."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import bf16, encode

WIDTH, ROWS, LAYERS = 8, 24, 2
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|bot|>", *"abcdefghijkl"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }}{{ m.content }}"
    "{{ '</s>' if m.role == 'assistant' }}{% endfor %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}
SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
SHAPES = {
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (4, 8),
    "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (16, 8),
    "mlp.up_proj": (16, 8),
    "mlp.down_proj": (8, 16),
    "input_layernorm": (8,),
    "post_attention_layernorm": (8,),
}


def tensors() -> dict[str, np.ndarray]:
    """The weights, in bfloat16."""
    chance = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (ROWS, WIDTH), "lm_head.weight": (ROWS, WIDTH)}
    shapes["model.norm.weight"] = (WIDTH,)
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{n}.weight": shape for n, shape in SHAPES.items()}
    return {name: bf16(chance.normal(size=shape)) for name, shape in shapes.items()}


def tokenizer() -> dict[str, Any]:
    """A tokenizer.json, as the tokenizers library reads it."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": n, "content": word, "special": True, **special}
            for n, word in enumerate(WORDS[:6])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, SEQUENCE],
            "pair": [SEQUENCE, SEQUENCE],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: n for n, word in enumerate(WORDS)},
            "unk_token": "<unk>",
        },
    }


def put(folder: Path, name: str, content: Any) -> Path:
    """Write a file: bytes and text as they are, arrays as safetensors, anything else as JSON."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif name.endswith(".safetensors"):
        path.write_bytes(encode(content, {"format": "pt"}))
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Change keys of a JSON object; ... removes one."""
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    content |= changes
    put(folder, name, {key: value for key, value in content.items() if value is not ...})


def right(folder: Path) -> Path:
    """A folder in which there is nothing to find."""
    put(folder, "model.safetensors", tensors())
    put(folder, "config.json", CONFIG)
    put(
        folder,
        "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 0},
    )
    put(folder, "tokenizer.json", tokenizer())
    put(folder, "tokenizer_config.json", TOKENIZER_CONFIG)
    put(folder, "special_tokens_map.json", {"eos_token": {"content": "</s>"}, "bos_token": "<s>"})
    put(folder, "chat_template.jinja", TEMPLATE)
    return folder


def sharded(folder: Path) -> Path:
    """The same in two shards."""
    right(folder)
    state = tensors()
    names = list(state)
    files = [f"model-{n:05d}-of-00002.safetensors" for n in (1, 2)]
    weight_map = {}
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        put(folder, file, {name: state[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    put(folder, "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder
