"""Small checkpoints for tests, written byte by byte so that nothing under test writes them."""

import json
import struct
from pathlib import Path

import numpy as np

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "bool": "BOOL"}
_NAMES |= {"int32": "I32", "uint8": "F8_E4M3"}


def bf16(values) -> np.ndarray:
    """Floats as bfloat16 bit patterns (truncated), which `header` writes as BF16."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def encode(tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file. uint16 arrays are written as BF16, uint8 ones as F8_E4M3."""
    header: dict = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, value in tensors.items():
        dtype = "BF16" if value.dtype == np.uint16 else _NAMES[value.dtype.name]
        raw = np.ascontiguousarray(value).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def save(folder: Path, tensors: dict[str, np.ndarray], *, shards: int = 1, **files) -> Path:
    """Write a checkpoint folder. ``files``: further files, by name with _ for a dot: text or JSON.

    ``config_json={...}`` writes config.json; a str is written as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    if shards == 1:
        (folder / "model.safetensors").write_bytes(encode(tensors, {"format": "pt"}))
    else:
        weight_map = {}
        for shard in range(shards):
            part = {n: tensors[n] for n in names[shard::shards]}
            name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            (folder / name).write_bytes(encode(part, {"format": "pt"}))
            weight_map |= dict.fromkeys(part, name)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, content in files.items():
        stem, _, ending = name.rpartition("_")
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{stem}.{ending}").write_text(text)
    return folder


def llama(
    seed: int = 0, *, hidden: int = 16, layers: int = 2, vocab: int = 32, noise: float = 0.02
):
    """Tensors of a tiny untied Llama in bfloat16."""
    chance = np.random.default_rng(seed)

    def weight(*shape):
        return bf16(chance.normal(0, noise, shape))

    tensors = {"model.embed_tokens.weight": weight(vocab, hidden)}
    for i in range(layers):
        p = f"model.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{p}self_attn.{name}.weight"] = weight(hidden, hidden)
        for name in ("gate_proj", "up_proj"):
            tensors[f"{p}mlp.{name}.weight"] = weight(2 * hidden, hidden)
        tensors[f"{p}mlp.down_proj.weight"] = weight(hidden, 2 * hidden)
        tensors[f"{p}input_layernorm.weight"] = bf16(1 + chance.normal(0, 0.01, hidden))
        tensors[f"{p}post_attention_layernorm.weight"] = bf16(1 + chance.normal(0, 0.01, hidden))
    tensors["model.norm.weight"] = bf16(1 + chance.normal(0, 0.01, hidden))
    tensors["lm_head.weight"] = weight(vocab, hidden)
    return tensors


def moved(tensors: dict[str, np.ndarray], seed: int, amount: float = 0.002):
    """The same bfloat16 tensors after some "training": each number moved a little."""
    chance = np.random.default_rng(seed)
    return {
        name: bf16(
            (value.astype(np.uint32) << 16).view(np.float32) + chance.normal(0, amount, value.shape)
        )
        if value.dtype == np.uint16
        else value
        for name, value in tensors.items()
    }


def fp8(seed: int, **shapes: tuple[int, int]) -> dict[str, np.ndarray]:
    """Matrices in FP8, 0 to 448 of either sign, with a scale for each block of 128 × 128."""
    chance = np.random.default_rng(seed)
    tensors = {}
    for name, (rows, columns) in shapes.items():
        codes = (
            chance.integers(0, 0x7F, (rows, columns)) | chance.integers(0, 2, (rows, columns)) << 7
        )
        scales = chance.uniform(1e-4, 2e-4, (-(-rows // 128), -(-columns // 128)))
        tensors[f"{name}.weight"] = codes.astype(np.uint8)
        tensors[f"{name}.weight_scale_inv"] = scales.astype(np.float32)
    return tensors
