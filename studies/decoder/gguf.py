"""Reads a GGUF file: its metadata, and its tensors as float32.

Only what SmolLM2's file needs: GGUF version 3 and the tensor types F32, F16, Q8_0 and Q4_1.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"GGUF"
VERSION = 3
STRING, ARRAY = 8, 9
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
BLOCK = 32  # elements per quantized block


class GgufError(ValueError):
    """The file is not a GGUF file that this module can read."""


@dataclass(frozen=True)
class Gguf:
    """Metadata by key, and tensors by name in float32, (rows, columns) as in a checkpoint."""

    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]


def q4_1(data: np.ndarray) -> np.ndarray:
    """Blocks of 20 bytes: a float16 scale d, a float16 minimum m, 32 nibbles q. Value d · q + m.

    The low nibbles are the first 16 elements, the high nibbles the last 16.
    """
    blocks = data.reshape(-1, 20)
    scale, least = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (scale * nibbles.astype(np.float32) + least).reshape(-1)


def q8_0(data: np.ndarray) -> np.ndarray:
    """Blocks of 34 bytes: a float16 scale d and 32 int8 q. Value d · q."""
    blocks = data.reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return (scale * blocks[:, 2:].view(np.int8).astype(np.float32)).reshape(-1)


def _plain(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda data: data.view(dtype).astype(np.float32)


# type number -> (name, bytes per block, elements per block, decoder)
TYPES: dict[int, tuple[str, int, int, Callable[[np.ndarray], np.ndarray]]] = {
    0: ("F32", 4, 1, _plain("<f4")),
    1: ("F16", 2, 1, _plain("<f2")),
    3: ("Q4_1", 20, BLOCK, q4_1),
    8: ("Q8_0", 34, BLOCK, q8_0),
}


class _Cursor:
    """Reads values in sequence and refuses to read past the end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.place:
            raise GgufError(
                f"The file ends inside its header: {count} bytes are wanted at byte {self.place}, "
                f"the file has {len(self.data)}."
            )
        self.place += count
        return self.data[self.place - count : self.place]

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            if count > len(self.data):
                raise GgufError(f"An array claims {count} elements, more than the file has bytes.")
            return [self.value(inner) for _ in range(count)]
        if kind not in SCALARS:
            raise GgufError(f"Unknown metadata type {kind} at byte {self.place}.")
        return self.scalar(SCALARS[kind])


def parse(data: bytes) -> Gguf:
    """The content of a GGUF file.

    Raises GgufError if the header is damaged, a tensor lies outside the file, or a tensor type is
    not supported.
    """
    cursor = _Cursor(data)
    if cursor.take(4) != MAGIC:
        raise GgufError("This is not a GGUF file: it does not begin with the bytes GGUF.")
    if (version := cursor.scalar("I")) != VERSION:
        raise GgufError(f"GGUF version {version} is not supported, only {VERSION}.")
    tensor_count, pair_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {cursor.string(): cursor.value(cursor.scalar("I")) for _ in range(pair_count)}
    entries = []
    for _ in range(tensor_count):
        name, rank = cursor.string(), cursor.scalar("I")
        shape = tuple(cursor.scalar("Q") for _ in range(rank))
        entries.append((name, shape, cursor.scalar("I"), cursor.scalar("Q")))
    alignment = metadata.get("general.alignment", 32)
    start = -(-cursor.place // alignment) * alignment
    return Gguf(metadata, {name: _tensor(data, start, name, *rest) for name, *rest in entries})


def _tensor(
    data: bytes, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int
) -> np.ndarray:
    if kind not in TYPES:
        known = ", ".join(f"{known} ({what})" for known, (what, *_) in TYPES.items())
        raise GgufError(f"Tensor {name} has type {kind}; supported are {known}.")
    _, size, elements, decode = TYPES[kind]
    count = int(np.prod(shape, dtype=object))
    if count % elements:
        raise GgufError(f"Tensor {name} has {count} elements, not a multiple of {elements}.")
    length = count // elements * size
    if start + offset + length > len(data):
        raise GgufError(
            f"Tensor {name} ends at byte {start + offset + length}, the file at {len(data)}."
        )
    raw = np.frombuffer(data, np.uint8, length, start + offset)
    return decode(raw).reshape(shape[::-1])


def read_gguf(path: Path) -> Gguf:
    """`parse` of a file."""
    return parse(path.read_bytes())
