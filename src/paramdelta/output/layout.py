"""The output's files: shards, offsets, headers and index, all known before the first byte."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from paramdelta.documents import to_json
from paramdelta.dtypes import DTYPES
from paramdelta.encodings.encoding import Stream
from paramdelta.errors import UsageError
from paramdelta.formats.components import WHOLE, Component, component_of
from paramdelta.formats.safetensors import encode_header
from paramdelta.storage.local import PAGE
from paramdelta.units import show_size

METADATA = {"format": "pt"}  # transformers refuses files without it
MIN_SHARD = 1_000_000  # bytes: below, a model would become thousands of files


@dataclass(frozen=True)
class Shard:
    """One weight file. ``name``: its path in the output. ``header``: its first bytes, up to the
    data. ``first`` to ``last``: numbers of its tensors. ``size``: bytes of the whole file.
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


@dataclass(frozen=True, repr=False)
class Layout:
    """All weight files of an output, in order, and the indexes that name them.

    ``streams``: the tensors, in the order in which files are filled. ``indexes``: by name, the text
    of the index of each component that has several files.
    """

    streams: tuple[Stream, ...]
    shards: tuple[Shard, ...]
    indexes: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"<Layout {len(self.streams)} tensors in {len(self.shards)} files, "
            f"{show_size(self.size)}>"
        )

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.size for shard in self.shards)

    @property
    def small(self) -> dict[str, bytes]:
        """The indexes as files."""
        return {name: text.encode() for name, text in self.indexes.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(stream.nbytes for stream in self.streams)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Where each tensor is, by number."""
        positions = [0, *accumulate(stream.nbytes for stream in self.streams)]
        places: dict[int, Place] = {}
        for number, shard in enumerate(self.shards):
            offset = len(shard.header)
            for at in _order(self.streams, range(shard.first, shard.last)):
                places[at] = Place(number, offset, positions[at])
                offset += self.streams[at].nbytes
        return tuple(places[at] for at in range(len(self.streams)))


def make_layout(
    streams: Sequence[Stream],
    parameters: int,
    shard_size: int,
    apart: int | None = None,
    components: Sequence[Component] = WHOLE,
) -> Layout:
    """Pack tensors, in order, into files of at most ``shard_size`` bytes each.

    A file holds neighbors, so a run that goes through the tensors completes one file after the
    other. Inside a file, wider elements come first.

    A larger tensor gets a separate file. ``parameters``: for the index. ``apart``: the number of
    a tensor that starts a new file in any case. ``components``: of the output; each has its own
    files and index, in which the names of its tensors have no prefix.

    Raises:
        UsageError: a shard size under 1 MB.
    """
    if shard_size < MIN_SHARD:
        raise UsageError(
            f"a shard size of {show_size(shard_size)} is too little",
            code="shard-size-too-small",
            expected=f"at least {show_size(MIN_SHARD)}",
        )
    owners = _owners(streams, components)
    groups: list[tuple[int, int]] = []
    first, size = 0, 0
    for number, stream in enumerate(streams):
        needed = stream.nbytes + _entry_bound(stream)
        starts = number == apart or owners[number] is not owners[first]
        if number > first and (size + needed > shard_size or starts):
            groups.append((first, number))
            first, size = number, 0
        size = size or 128 + PAGE  # the length, the metadata and the padding of the header
        size += needed
    groups.append((first, len(streams)))
    names = _names([owners[first] if owners else components[0] for first, _ in groups])
    shards = []
    for name, (first, last) in zip(names, groups, strict=True):
        prefix = owners[first].prefix if owners else ""
        ordered = [streams[at] for at in _order(streams, range(first, last))]
        header = make_header(_inside(ordered, prefix))
        size = len(header) + sum(stream.nbytes for stream in streams[first:last])
        shards.append(Shard(name, header, first, last, size))
    indexes = {}
    for component in components:
        own = [s for s in shards if owners and owners[s.first] is component]
        if len(own) > 1:
            inside = sum(s.last - s.first for s in own) < len(streams)
            count = (
                sum(stream.elements for s in own for stream in streams[s.first : s.last])
                if inside
                else parameters
            )
            indexes[component.index] = _index(streams, count, own, component)
    return Layout(tuple(streams), tuple(shards), indexes)


def _order(streams: Sequence[Stream], numbers: Iterable[int]) -> list[int]:
    """The tensors of a file, wider elements first as the format's own writer does: every tensor
    stays aligned.
    """
    return sorted(numbers, key=lambda number: -DTYPES[streams[number].dtype].size)


def _owners(streams: Sequence[Stream], components: Sequence[Component]) -> list[Component]:
    """The component of every tensor."""
    if len(components) == 1 and not components[0].prefix:
        return list(components) * len(streams)
    return [component_of(stream.name, components) for stream in streams]


def _names(owners: Sequence[Component]) -> list[str]:
    """The names of weight files, of which the components are given."""
    counts = Counter(owners)
    numbers: Counter[Component] = Counter()
    names = []
    for owner in owners:
        numbers[owner] += 1
        several = counts[owner] > 1
        names.append(owner.shard(numbers[owner], counts[owner]) if several else owner.weights)
    return names


def _inside(streams: Sequence[Stream], prefix: str) -> Sequence[Stream]:
    """The tensors as the component's own files name them."""
    return [replace(s, name=s.name[len(prefix) :]) for s in streams] if prefix else streams


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


def _index(
    streams: Sequence[Stream], parameters: int, shards: Sequence[Shard], component: Component
) -> str:
    """The index of a component's weight files, which lies beside them."""
    weight_map: dict[str, str] = {}
    total = 0
    for shard in shards:
        own = streams[shard.first : shard.last]
        weight_map |= dict.fromkeys(
            (stream.name for stream in _inside(own, component.prefix)),
            shard.name[len(component.folder) :],
        )
        total += sum(stream.nbytes for stream in own)
    metadata: dict[str, Any] = {"total_parameters": parameters, "total_size": total}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    return to_json(index)
