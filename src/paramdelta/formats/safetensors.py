"""One safetensors header: parsed and checked before anything in it is believed.

Format: 8 bytes little-endian header length n, n bytes of JSON, then the data. The JSON maps tensor
names to ``{"dtype", "shape", "data_offsets": [begin, end]}`` relative to the data, which the
tensors cover without overlap, hole or rest; ``__metadata__`` maps strings to strings.
Source: the format's section of the safetensors README and its reference reader.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramdelta.dtypes import DTYPES
from paramdelta.errors import CheckpointError

MAX_HEADER = 100_000_000  # the reference reader's own limit, in bytes


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: safetensors dtype name, shape, first byte in the file, bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def header_length(start: bytes, file_size: int, where: str) -> int:
    """The length of the JSON from the file's first 8 bytes, checked against the file's size.

    Raises:
        CheckpointError: too short a file, or a length that cannot be true.
    """
    if len(start) < 8 or file_size < 8:
        raise _error(
            "too short for a safetensors file", where, "at least 8 bytes", f"{file_size} bytes"
        )
    length = int.from_bytes(start[:8], "little")
    if length > min(MAX_HEADER, file_size - 8) or length < 2:
        raise _error(
            "the header's length cannot be true",
            where,
            f"2 to {min(MAX_HEADER, file_size - 8)} bytes",
            f"{length} bytes in a file of {file_size}",
        )
    return length


def parse_header(text: bytes, file_size: int, where: str) -> tuple[list[Entry], dict[str, str]]:
    """Parse and check the JSON of one file: its tensors in the order of their bytes, its metadata.

    Raises:
        CheckpointError: anything that the format does not allow.
    """
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise _error("the header is nested too deeply", where, "a flat object", "") from None
    except ValueError as error:  # not UTF-8, not JSON, a name twice
        raise _error("the header is not valid JSON", where, "a JSON object", str(error)) from None
    if not isinstance(header, dict):
        raise _error("the header is not an object", where, "{…}", type(header).__name__)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _error("__metadata__ is not a map of strings", where, '{"key": "value"}', "")
    data_start = 8 + len(text)
    entries = [_entry(name, info, data_start, where) for name, info in header.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    position = data_start
    for entry in entries:
        if entry.offset != position:
            problem = "overlaps the one before" if entry.offset < position else "follows a hole"
            raise _error(
                f"the data of tensor {entry.name!r} {problem}",
                where,
                f"begin at {position - data_start}",
                f"{entry.offset - data_start}",
            )
        position += entry.nbytes
    if position != file_size:
        problem = "is truncated" if position > file_size else "has bytes that belong to no tensor"
        raise _error(
            f"the file {problem}",
            where,
            f"{position} bytes, by its header",
            f"{file_size} bytes",
        )
    return entries, metadata


def encode_header(
    tensors: Iterable[tuple[str, str, Sequence[int], int, int]],
    metadata: Mapping[str, str],
    multiple: int,
    size: int = 0,
) -> bytes:
    """The first bytes of a file, up to the data.

    ``tensors``: name, safetensors dtype, shape, first byte in the data and the byte after the last.
    ``multiple``: the result is padded to a multiple of so many bytes, and to ``size`` at least.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, dtype, shape, begin, end in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (max(-(-(8 + len(text)) // multiple) * multiple, size) - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice")
    return result


def _entry(name: str, info: Any, data_start: int, where: str) -> Entry:
    place = f"{where}, tensor {name!r}"
    if not isinstance(info, Mapping) or not {"dtype", "shape", "data_offsets"} <= info.keys():
        raise _error("malformed tensor entry", place, "dtype, shape, data_offsets", _short(info))
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _error("unknown dtype", place, ", ".join(DTYPES), _short(dtype))
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise _error("malformed shape", place, "a list of sizes", _short(shape))
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _error("malformed data_offsets", place, "[begin, end]", _short(offsets))
    begin, end = offsets
    nbytes = DTYPES[dtype].nbytes(math.prod(shape))
    if end - begin != nbytes:
        raise _error(
            "dtype and shape disagree with the byte range",
            place,
            f"{nbytes} bytes for {dtype} {shape}",
            f"[{begin}, {end}], {end - begin} bytes",
        )
    return Entry(name, dtype, tuple(shape), data_start + begin, nbytes)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _error(what: str, where: str, expected: str, got: str) -> CheckpointError:
    return CheckpointError(
        what,
        where=where,
        expected=expected,
        got=got,
        remedy="the file is damaged or not a safetensors file: get it again",
    )
