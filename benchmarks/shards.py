"""A checkpoint's safetensors files, laid out before a byte of data exists: bf16 throughout."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ITEM = 2  # bytes of a bfloat16


@dataclass(frozen=True)
class Shard:
    """One file: its name, its header as bytes, and where each tensor's data begins in it."""

    name: str
    header: bytes
    offsets: dict[str, int]
    size: int


def layout(tensors: Mapping[str, tuple[int, ...]], shard_size: int) -> list[Shard]:
    """Fill files in the given order, each up to `shard_size` bytes of data."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in tensors.items():
        size = ITEM * math.prod(shape)
        if groups[-1] and filled + size > shard_size:
            groups.append({})
            filled = 0
        groups[-1][name] = shape
        filled += size
    count = len(groups)
    return [
        _shard(f"model-{number:05d}-of-{count:05d}.safetensors", group)
        for number, group in enumerate(groups, 1)
    ]


def _shard(name: str, tensors: Mapping[str, tuple[int, ...]]) -> Shard:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts = {}
    end = 0
    for tensor, shape in tensors.items():
        start, end = end, end + ITEM * math.prod(shape)
        starts[tensor] = start
        entries[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    header = struct.pack("<Q", len(text)) + text
    offsets = {tensor: len(header) + start for tensor, start in starts.items()}
    return Shard(name, header, offsets, len(header) + end)


def lay_down(folder: Path, shards: list[Shard], config: Mapping[str, object]) -> None:
    """Write config, index and headers; every data byte is a hole until someone fills it."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        with (folder / shard.name).open("wb") as file:
            file.write(shard.header)
            file.truncate(shard.size)
    index = {
        "metadata": {"total_size": sum(shard.size - len(shard.header) for shard in shards)},
        "weight_map": {tensor: shard.name for shard in shards for tensor in shard.offsets},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
