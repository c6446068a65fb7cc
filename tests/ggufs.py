"""GGUF files for tests, written byte by byte, and models turned into them as llama.cpp does."""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = 0, 1, 2, 3, 6, 7, 8
Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, BF16 = 10, 11, 12, 13, 14, 30
BLOCKS = {
    F32: (1, 4),
    F16: (1, 2),
    BF16: (1, 2),
    Q4_0: (32, 18),
    Q4_1: (32, 20),
    Q5_0: (32, 22),
    Q5_1: (32, 24),
    Q8_0: (32, 34),
    Q2_K: (256, 84),
    Q3_K: (256, 110),
    Q4_K: (256, 144),
    Q5_K: (256, 176),
    Q6_K: (256, 210),
}
"""By type: numbers and bytes of a block."""

# Where the float16 factors of a block are: random bytes there would be huge numbers, or NaN.
_FACTORS = {
    Q4_0: (0,),
    Q4_1: (0, 2),
    Q5_0: (0,),
    Q5_1: (0, 2),
    Q8_0: (0,),
    Q2_K: (80, 82),
    Q3_K: (108,),
    Q4_K: (0, 2),
    Q5_K: (0, 2),
    Q6_K: (208,),
}


class Tensor:
    """``data``: the bytes as stored; ``shape``: slowest axis first."""

    def __init__(self, kind: int, shape: tuple[int, ...], data: bytes) -> None:
        self.kind, self.shape, self.data = kind, shape, data


def text(value: str) -> bytes:
    """A string: its length, its bytes."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(content: Any) -> bytes:
    """A value with its type: text, bool, int (uint32), float (float32), or a list of one kind."""
    if isinstance(content, str):
        return struct.pack("<I", 8) + text(content)
    if isinstance(content, bool):
        return struct.pack("<I?", 7, content)
    if isinstance(content, int):
        return struct.pack("<II", 4, content)
    if isinstance(content, float):
        return struct.pack("<If", 6, content)
    items = [value(item) for item in content] or [value(0)]
    return (
        struct.pack("<I", 9)
        + items[0][:4]
        + struct.pack("<Q", len(content))
        + b"".join(item[4:] for item in items[: len(content)])
    )


def encode(
    metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], *, version: int = 3
) -> bytes:
    """A GGUF file."""
    alignment = metadata.get("general.alignment", 32)
    kinds = {name: (tensor.kind, tensor.shape) for name, tensor in tensors.items()}
    head, _ = _head(metadata, kinds, version)
    data = (t.data + bytes(-len(t.data) % alignment) for t in tensors.values())
    return head + b"".join(data)


def sparse(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, tuple[int, ...]]]
) -> None:
    """A GGUF file of tensors ``name: (type, shape)``, all zeros that take no disk."""
    head, size = _head(metadata, tensors, 3)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)


def _head(
    metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, tuple[int, ...]]], version: int
) -> tuple[bytes, int]:
    """Everything before the data, and the size of the data."""
    alignment = metadata.get("general.alignment", 32)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value(content) for key, content in metadata.items())
    end = 0
    for name, (kind, shape) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape[::-1]) + struct.pack("<IQ", kind, end)
        each, size = BLOCKS[kind]
        end += math.prod(shape) // each * size
        end += -end % alignment
    return head + bytes(-len(head) % alignment), end


def plain(values: Any) -> Tensor:
    """A tensor in F32."""
    array = np.asarray(values, np.float32)
    return Tensor(F32, array.shape, array.tobytes())


def blocks(kind: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Blocks of random codes and small factors."""
    chance = np.random.default_rng(seed)
    each, size = BLOCKS[kind]
    count = int(np.prod(shape)) // each
    data = chance.integers(0, 256, (count, size), dtype=np.uint8)
    for at in _FACTORS[kind]:
        factor = chance.uniform(-0.01, 0.01, count).astype("<f2")
        data[:, at : at + 2] = factor.view(np.uint8).reshape(-1, 2)
    return Tensor(kind, shape, data.tobytes())


def vocabulary(size: int) -> dict[str, Any]:
    """Metadata of a byte-level tokenizer with two control tokens at its end."""
    tokens = [f"t{number}" for number in range(size - 2)] + ["<|end|>", "<|pad|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (size - 2) + [3, 3],
        "tokenizer.ggml.merges": ["t 1", "t 2"],
        "tokenizer.ggml.eos_token_id": size - 2,
        "tokenizer.ggml.padding_token_id": size - 1,
        "tokenizer.chat_template": "{{ messages }}<|end|>",
    }


def metadata(architecture: str, *, heads: int, key_heads: int, **more: Any) -> dict[str, Any]:
    """The metadata of a model. ``more``: of the architecture, with _ for a dot."""
    return {
        "general.architecture": architecture,
        f"{architecture}.attention.head_count": heads,
        f"{architecture}.attention.head_count_kv": key_heads,
        **{f"{architecture}.{key}": item for key, item in more.items()},
    }


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of query or key as llama.cpp's converter orders them (``LlamaModel.permute``)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def save(path: Path, keys: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(keys, tensors))
    return path
