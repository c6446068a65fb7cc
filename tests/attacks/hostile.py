"""Files made to hurt: each generator writes one hostile or damaged checkpoint folder.

`ATTACKS` maps a name to a function that fills a folder; opening it must raise a CheckpointError (or
StorageError) that names the problem, and must neither hang, nor allocate what the file claims, nor
leave the folder.
"""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.checkpoints import encode

GOOD = {"a": np.ones((4, 4), np.float32), "b": np.ones(3, np.float32)}
INDEX = "model.safetensors.index.json"


def _file(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)


def _header(folder: Path, header: object, data: bytes = b"\0" * 64) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    _file(folder, struct.pack("<Q", len(text)) + text + data)


def _entry(dtype="F32", shape=(4, 4), offsets=(0, 64)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def _index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def truncated(folder: Path) -> None:
    """A shard whose download stopped."""
    _file(folder, encode(GOOD)[:-20])


def truncated_header(folder: Path) -> None:
    """A file that ends inside its header."""
    _file(folder, encode(GOOD)[:40])


def empty(folder: Path) -> None:
    """A file of no bytes."""
    _file(folder, b"")


def huge_header(folder: Path) -> None:
    """A header length that would take all memory."""
    _file(folder, struct.pack("<Q", 2**62) + b"{}" * 20)


def header_longer_than_file(folder: Path) -> None:
    """A header that ends one byte after the file."""
    _file(folder, struct.pack("<Q", 41) + b" " * 40)


def not_json(folder: Path) -> None:
    """Noise in place of the header."""
    _header(folder, b"\xff\xfe{{{")


def a_list(folder: Path) -> None:
    """JSON, but no object."""
    _header(folder, ["a"])


def nested(folder: Path) -> None:
    """JSON deep enough to exhaust a recursive parser."""
    _header(folder, b"[" * 200_000)


def huge_number(folder: Path) -> None:
    """An integer of ten thousand digits."""
    _header(folder, b'{"a":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,64]}}')


def overlapping(folder: Path) -> None:
    """Two tensors on the same bytes."""
    _header(folder, {"a": _entry(), "b": _entry(offsets=(0, 64))})


def hole(folder: Path) -> None:
    """Bytes between two tensors: a place to hide something."""
    _header(folder, {"a": _entry(offsets=(16, 80))}, b"\0" * 80)


def out_of_range(folder: Path) -> None:
    """Data that lies behind the end of the file."""
    _header(folder, {"a": _entry(shape=(2**20,), offsets=(0, 2**22))})


def backwards(folder: Path) -> None:
    """An end before its begin."""
    _header(folder, {"a": _entry(offsets=(64, 0))})


def negative(folder: Path) -> None:
    """A negative offset."""
    _header(folder, {"a": _entry(offsets=(-64, 0))})


def negative_shape(folder: Path) -> None:
    """A shape whose product is right and whose sizes are not."""
    _header(folder, {"a": _entry(shape=(-4, -4))})


def wrong_size(folder: Path) -> None:
    """Shape and dtype that do not fill the byte range."""
    _header(folder, {"a": _entry(shape=(4, 5))})


def overflowing_shape(folder: Path) -> None:
    """A shape whose product wraps to the right number in 64 bits."""
    _header(folder, {"a": _entry(shape=(2**32, 2**32 + 1, 16))})


def unknown_dtype(folder: Path) -> None:
    """A dtype that does not exist."""
    _header(folder, {"a": _entry(dtype="F33")})


def boolean_shape(folder: Path) -> None:
    """true is no size."""
    _header(folder, {"a": _entry(shape=(True, 16))})


def duplicate_name(folder: Path) -> None:
    """One name twice: two readers could see two models."""
    entry = json.dumps(_entry())
    _header(folder, f'{{"a": {entry}, "a": {entry}}}'.encode())


def metadata_not_text(folder: Path) -> None:
    """Metadata of the wrong kind."""
    _header(folder, {"__metadata__": {"format": 1}, "a": _entry()})


def trailing_bytes(folder: Path) -> None:
    """Something behind the last tensor."""
    _file(folder, encode(GOOD) + b"surprise")


def escaping_index(folder: Path) -> None:
    """An index that names a file above its folder."""
    (folder.parent / "x.safetensors").write_bytes(encode(GOOD))
    _index(folder, {"a": "../x.safetensors", "b": "../x.safetensors"})


def absolute_index(folder: Path) -> None:
    """An index that names a file by its full path."""
    target = folder.parent / "y.safetensors"
    target.write_bytes(encode(GOOD))
    _index(folder, {"a": str(target), "b": str(target)})


def nul_index(folder: Path) -> None:
    """An index with a NUL in a file name."""
    _index(folder, {"a": "model\0.safetensors"})


def number_index(folder: Path) -> None:
    """An index whose shard is a number."""
    _index(folder, {"a": 7})


def absent_shard(folder: Path) -> None:
    """An index that names a shard that is not there."""
    (folder / "model-00001-of-00002.safetensors").write_bytes(encode(GOOD))
    _index(
        folder,
        dict.fromkeys(GOOD, "model-00001-of-00002.safetensors")
        | {"c": "model-00002-of-00002.safetensors"},
    )


def lying_index(folder: Path) -> None:
    """An index that promises a tensor that its shard lacks."""
    (folder / "model-00001-of-00001.safetensors").write_bytes(encode(GOOD))
    _index(folder, dict.fromkeys([*GOOD, "c"], "model-00001-of-00001.safetensors"))


def same_tensor_twice(folder: Path) -> None:
    """Two shards with one tensor."""
    for i in (1, 2):
        (folder / f"model-0000{i}-of-00002.safetensors").write_bytes(encode(GOOD))


def lone_shard(folder: Path) -> None:
    """One shard of two and no index."""
    (folder / "model-00001-of-00002.safetensors").write_bytes(encode(GOOD))


def pickle(folder: Path) -> None:
    """A pickle that would run a command when loaded."""
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")


def nothing(folder: Path) -> None:
    """A folder with no weights."""


def config_not_json(folder: Path) -> None:
    """A config.json that is cut off."""
    _file(folder, encode(GOOD))
    (folder / "config.json").write_text('{"model_type": "lla')


def broken_link(folder: Path) -> None:
    """A link to a blob that is not in the cache."""
    _index(folder, {"a": "model-00001-of-00001.safetensors"})
    os.symlink("../../blobs/gone", folder / "model-00001-of-00001.safetensors")


ATTACKS: dict[str, Callable[[Path], None]] = {
    attack.__name__: attack
    for attack in (
        truncated, truncated_header, empty, huge_header, header_longer_than_file, not_json, a_list,
        nested, huge_number, overlapping, hole, out_of_range, backwards, negative, negative_shape,
        wrong_size, overflowing_shape, unknown_dtype, boolean_shape, duplicate_name,
        metadata_not_text, trailing_bytes, escaping_index, absolute_index, nul_index, number_index,
        absent_shard, lying_index, same_tensor_twice, lone_shard, pickle, nothing, config_not_json,
        broken_link,
    )
}  # fmt: skip
