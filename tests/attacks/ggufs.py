"""Hostile and costly GGUF files. `ATTACKS` and `AMPLIFIED` are parts of those of this package."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import ggufs

KEYS: dict[str, Any] = {**ggufs.metadata("llama", heads=2, key_heads=1), **ggufs.vocabulary(8)}
TENSORS = {
    "token_embd.weight": ggufs.plain(np.ones((8, 4))),
    "blk.0.attn_q.weight": ggufs.plain(np.ones((8, 4))),
    "blk.0.ffn_up.weight": ggufs.blocks(ggufs.Q8_0, (2, 32)),
    "output_norm.weight": ggufs.plain(np.ones(4)),
}
GOOD = ggufs.encode(KEYS, TENSORS)


def _put(folder: Path, data: bytes) -> None:
    (folder / "model.gguf").write_bytes(data)


def _tensor(name="token_embd.weight", shape=(4, 8), kind=0, offset=0, data=bytes(128)) -> bytes:
    """A file of one tensor, whose fields need not agree. ``shape``: fastest axis first."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(KEYS))
    head += b"".join(ggufs.text(key) + ggufs.value(value) for key, value in KEYS.items())
    head += ggufs.text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    head += struct.pack("<IQ", kind, offset)
    return head + bytes(-len(head) % 32) + data


def _keys(*pairs: bytes, count: int | None = None, rest: bytes = b"") -> bytes:
    """A file of metadata alone."""
    number = len(pairs) if count is None else count
    return b"GGUF" + struct.pack("<IQQ", 3, 0, number) + b"".join(pairs) + rest


def _array(kind: int, count: int, data: bytes, key: str = "tokenizer.ggml.tokens") -> bytes:
    return ggufs.text(key) + struct.pack("<IIQ", 9, kind, count) + data


def _with(**changes: Any) -> bytes:
    keys = {**KEYS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return ggufs.encode(keys, TENSORS)


def _renamed(old: str, new: str) -> bytes:
    return ggufs.encode(KEYS, {new if name == old else name: t for name, t in TENSORS.items()})


def _same_name() -> bytes:
    """Two tensors of one name."""
    return GOOD.replace(b"blk.0.ffn_up.weight", b"blk.0.attn_q.weight")


def _second_at(offset: int) -> bytes:
    """Two tensors of 32 bytes, the second at an offset of the data."""
    tensors = {f"blk.{i}.attn_norm.weight": ggufs.plain(np.ones(8)) for i in range(2)}
    data = ggufs.encode({"general.architecture": "qwen2"}, tensors)
    field = struct.pack("<Q", 32)
    at = data.rindex(field)
    return data[:at] + struct.pack("<Q", offset) + data[at + 8 :] + bytes(64)


_FILES: dict[str, Callable[[], bytes]] = {
    "truncated": lambda: GOOD[:-40],
    "truncated header": lambda: GOOD[:100],
    "magic alone": lambda: b"GGUF",
    "version 1": lambda: b"GGUF\1" + GOOD[5:],
    "big-endian": lambda: b"GGUF\0\0\0\3" + GOOD[8:],
    "many tensors": lambda: b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0) + bytes(64),
    "many keys": lambda: _keys(count=2**62, rest=bytes(64)),
    "long key": lambda: _keys(struct.pack("<Q", 2**60) + bytes(32)),
    "empty key": lambda: _keys(ggufs.text("") + ggufs.value(1)),
    "key that is no text": lambda: _keys(struct.pack("<Q", 2) + b"\xff\xfe" + ggufs.value(1)),
    "key twice": lambda: _keys(*[ggufs.text("a") + ggufs.value(1)] * 2),
    "long string": lambda: _keys(ggufs.text("a") + struct.pack("<IQ", 8, 2**61) + bytes(32)),
    "long array": lambda: _keys(_array(0, 2**61, bytes(32))),
    "long array of strings": lambda: _keys(_array(8, 2**61, bytes(32))),
    "nested array": lambda: _keys(_array(9, 1, struct.pack("<IQ", 9, 1) * 20)),
    "unknown type of a value": lambda: _keys(ggufs.text("a") + struct.pack("<I", 99) + bytes(32)),
    "alignment 0": lambda: _keys(ggufs.text("general.alignment") + ggufs.value(0)),
    "alignment 3": lambda: _keys(ggufs.text("general.alignment") + ggufs.value(3)),
    "alignment text": lambda: _keys(ggufs.text("general.alignment") + ggufs.value("x")),
    "huge alignment": lambda: _keys(ggufs.text("general.alignment") + ggufs.value(1 << 30)),
    "no axes": lambda: _tensor(shape=()),
    "many axes": lambda: _tensor(shape=(1,) * 5),
    "huge axes": lambda: _tensor(shape=(2**63, 2**63)),
    "overflowing shape": lambda: _tensor(shape=(2**32, 2**32)),
    "axis of 0": lambda: _tensor(shape=(0, 8)),
    "overlapping tensors": lambda: _second_at(0),
    "gap": lambda: _second_at(64),
    "unaligned offset": lambda: _tensor(offset=1),
    "huge offset": lambda: _tensor(offset=2**63),
    "beyond the file": lambda: _tensor(shape=(4, 9), data=bytes(128)),
    "cut block": lambda: _tensor(shape=(33, 2), kind=ggufs.Q8_0),
    "IQ4_XS": lambda: _tensor(kind=23),
    "MXFP4": lambda: _tensor(kind=39),
    "removed type": lambda: _tensor(kind=4),
    "unknown type": lambda: _tensor(kind=2**31),
    "long name": lambda: _tensor(name="a" * 65),
    "name without text": lambda: _tensor(name=""),
    "unknown tensor": lambda: _tensor(name="v.patch_embd.weight"),
    "experts": lambda: _tensor(name="blk.0.ffn_gate_exps.weight"),
    "block of many digits": lambda: _tensor(name=f"blk.{'9' * 40}.attn_v.weight"),
    "name of an escape": lambda: _tensor(name="\x1b[2J"),
    "no architecture": lambda: ggufs.encode({}, TENSORS),
    "architecture of a list": lambda: _with(general__architecture=["llama"]),
    "unknown architecture": lambda: _with(general__architecture="rwkv7"),
    "adapter": lambda: _with(general__type="adapter"),
    "mixture": lambda: _with(llama__expert_count=8),
    "heads that do not divide": lambda: _with(llama__attention__head_count=3),
    "no tensors": lambda: ggufs.encode(KEYS, {}),
    "no heads": lambda: _with(llama__attention__head_count=0),
    "heads by layer": lambda: _with(llama__attention__head_count=[2, 2]),
    "part of several": lambda: _with(split__count=3, split__no=0),
    "tensor twice": _same_name,
}


def _attack(make: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda folder: _put(folder, make())


ATTACKS = {f"gguf: {name}": _attack(make) for name, make in _FILES.items()}


def _file(make: Callable[[], bytes]) -> Callable[[Path], Path]:
    def written(folder: Path) -> Path:
        _put(folder, make())
        return folder / "model.gguf"

    return written


def _flood(kind: int, piece: bytes, key: str = "tokenizer.ggml.tokens") -> Callable[[], bytes]:
    count = min(9_000_000 // len(piece), 4_000_000)
    return lambda: _keys(_array(kind, count, piece * count, key))


def _tokens(count: int, kind: int) -> bytes:
    """A model with distinct tokens of a type."""
    tokens = b"".join(ggufs.text(f"{number:x}") for number in range(count))
    pairs = [
        ggufs.text("general.architecture") + ggufs.value("qwen2"),
        _array(8, count, tokens),
        _array(5, count, struct.pack("<i", kind) * count, "tokenizer.ggml.token_type"),
    ]
    tensor = ggufs.text("output_norm.weight") + struct.pack("<IQIQ", 1, 1, 0, 0)
    data = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + tensor
    return data + bytes(-len(data) % 32) + bytes(32)


def _tensors(count: int) -> bytes:
    """Many small tensors."""
    tensors = {f"blk.{i}.attn_norm.weight": ggufs.plain([1.0]) for i in range(count)}
    return ggufs.encode({"general.architecture": "qwen2"}, tensors)


AMPLIFIED = {
    f"gguf: {name}": _file(make)
    for name, make in {
        "flood of tokens": lambda: _tokens(450_000, 1),
        "flood of control tokens": lambda: _tokens(450_000, 3),
        "flood of empty strings": _flood(8, bytes(8)),
        "flood of merges": _flood(8, bytes(8), "tokenizer.ggml.merges"),
        "flood of short strings": _flood(8, ggufs.text("abc")),
        "flood of bytes": _flood(0, b"x"),
        "flood of keys": lambda: _keys(
            *(ggufs.text(f"{i:x}") + ggufs.value("") for i in range(65_000))
        ),
        "flood of tensors": lambda: _tensors(65_000),
    }.items()
}
