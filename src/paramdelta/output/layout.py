"""The output's files: shards, offsets, headers and index, all known before the first byte."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from paramdelta.documents import to_json
from paramdelta.encodings.encoding import Stream
from paramdelta.errors import UsageError
from paramdelta.formats.checkpoint import INDEX, WEIGHTS
from paramdelta.formats.safetensors import encode_header
from paramdelta.storage.local import PAGE
from paramdelta.units import show_size

METADATA = {"format": "pt"}  # transformers refuses files without it
MIN_SHARD = 1_000_000  # bytes: below, a model would become thousands of files


@dataclass(frozen=True)
class Shard:
    """One weight file. ``header``: its first bytes, up to the data. ``first`` to ``last``: numbers
    of its tensors. ``size``: bytes of the whole file.
    """

    name: str
    header: bytes
    first: int
    last: int
    size: int


@dataclass(frozen=True)
class Place:
    """Where a tensor is: number of its file, offset there, first byte in all data end to end."""

    shard: int
    offset: int
    position: int


@dataclass(frozen=True)
class Layout:
    """All weight files of an output, in order, and the index that names them.

    ``streams``: the tensors of the files. ``index``: text of model.safetensors.index.json; None
    for a single file.
    """

    streams: tuple[Stream, ...]
    shards: tuple[Shard, ...]
    index: str | None

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.size for shard in self.shards)

    @property
    def small(self) -> dict[str, bytes]:
        """The index as a file; empty for a single weight file."""
        return {} if self.index is None else {INDEX: self.index.encode()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(stream.nbytes for stream in self.streams)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Where each tensor is, by number."""
        positions = [0, *accumulate(stream.nbytes for stream in self.streams)]
        return tuple(
            Place(
                number,
                len(shard.header) + positions[at] - positions[shard.first],
                positions[at],
            )
            for number, shard in enumerate(self.shards)
            for at in range(shard.first, shard.last)
        )


def make_layout(
    streams: Sequence[Stream], parameters: int, shard_size: int, apart: int | None = None
) -> Layout:
    """Pack tensors, in order, into files of at most ``shard_size`` bytes each.

    A larger tensor gets a separate file. ``parameters``: for the index. ``apart``: the number of
    a tensor that starts a new file in any case.

    Raises:
        UsageError: a shard size under 1 MB.
    """
    if shard_size < MIN_SHARD:
        raise UsageError(
            f"a shard size of {show_size(shard_size)} is too little",
            code="shard-size-too-small",
            expected=f"at least {show_size(MIN_SHARD)}",
        )
    groups: list[tuple[int, int]] = []
    first, size = 0, 0
    for number, stream in enumerate(streams):
        needed = stream.nbytes + _entry_bound(stream)
        if number > first and (size + needed > shard_size or number == apart):
            groups.append((first, number))
            first, size = number, 0
        size = size or 128 + PAGE  # the length, the metadata and the padding of the header
        size += needed
    groups.append((first, len(streams)))
    shards = []
    for number, (first, last) in enumerate(groups, 1):
        name = (
            WEIGHTS if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        )
        header = make_header(streams[first:last])
        size = len(header) + sum(stream.nbytes for stream in streams[first:last])
        shards.append(Shard(name, header, first, last, size))
    index = None if len(shards) == 1 else _index(streams, parameters, shards)
    return Layout(tuple(streams), tuple(shards), index)


def make_header(streams: Iterable[Stream]) -> bytes:
    """The safetensors header of a file with these tensors, padded to a whole page."""
    entries, end = [], 0
    for stream in streams:
        begin, end = end, end + stream.nbytes
        entries.append((stream.name, stream.dtype, stream.shape, begin, end))
    return encode_header(entries, METADATA, PAGE)


def _entry_bound(stream: Stream) -> int:
    name = len(json.dumps(stream.name, ensure_ascii=False).encode())
    return name + 100 + 21 * len(stream.shape)


def _index(streams: Sequence[Stream], parameters: int, shards: Sequence[Shard]) -> str:
    weight_map = {
        stream.name: shard.name for shard in shards for stream in streams[shard.first : shard.last]
    }
    metadata: dict[str, Any] = {
        "total_parameters": parameters,
        "total_size": sum(stream.nbytes for stream in streams),
    }
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    return to_json(index)
