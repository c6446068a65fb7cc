"""The output's files: shards, offsets, headers and index, all known before the first byte."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from paramdelta.errors import UsageError
from paramdelta.formats.checkpoint import WEIGHTS
from paramdelta.planning.plan import OutputTensor, Plan
from paramdelta.storage.local import PAGE
from paramdelta.units import show_size

METADATA = {"format": "pt"}  # transformers refuses files without it
MIN_SHARD = 1_000_000  # bytes: below, a model would become a heap of thousands of files


@dataclass(frozen=True)
class Shard:
    """One weight file. ``header``: its first bytes, up to the data. ``first`` to ``last``: its
    tensors' numbers in the plan. ``size``: bytes of the whole file.
    """

    name: str
    header: bytes
    first: int
    last: int
    size: int


@dataclass(frozen=True)
class Layout:
    """All weight files of the output, in order, and the index that names them.

    ``index``: text of model.safetensors.index.json; None for a single file.
    """

    shards: tuple[Shard, ...]
    index: str | None

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.size for shard in self.shards)


def make_layout(plan: Plan, shard_size: int, apart: int | None = None) -> Layout:
    """Pack the plan's tensors, in order, into files of at most ``shard_size`` bytes each.

    A tensor that is larger than that gets a file of its own. ``apart``: the number of a tensor that
    begins a new file in any case.

    Raises:
        UsageError: a shard size under 1 MB.
    """
    if shard_size < MIN_SHARD:
        raise UsageError(
            f"--shard-size {show_size(shard_size)} is too little",
            expected=f"at least {show_size(MIN_SHARD)}",
        )
    groups: list[tuple[int, int]] = []
    first, size = 0, 0
    for number, tensor in enumerate(plan.tensors):
        needed = tensor.nbytes + _entry_bound(tensor)
        if number > first and (size + needed > shard_size or number == apart):
            groups.append((first, number))
            first, size = number, 0
        size = size or 128 + PAGE  # the length, the metadata and the padding of the header
        size += needed
    groups.append((first, len(plan.tensors)))
    shards = []
    for number, (first, last) in enumerate(groups, 1):
        name = (
            WEIGHTS if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        )
        tensors = plan.tensors[first:last]
        header = make_header(tensors)
        size = len(header) + sum(tensor.nbytes for tensor in tensors)
        shards.append(Shard(name, header, first, last, size))
    return Layout(tuple(shards), None if len(shards) == 1 else _index(plan, shards))


def make_header(tensors: Iterable[OutputTensor]) -> bytes:
    """The safetensors header of a file with these tensors, padded to a whole block."""
    header: dict[str, Any] = {"__metadata__": METADATA}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return len(text).to_bytes(8, "little") + text


def _entry_bound(tensor: OutputTensor) -> int:
    name = len(json.dumps(tensor.name, ensure_ascii=False).encode())
    return name + 100 + 21 * len(tensor.shape)


def _index(plan: Plan, shards: list[Shard]) -> str:
    weight_map = {
        tensor.name: shard.name
        for shard in shards
        for tensor in plan.tensors[shard.first : shard.last]
    }
    metadata = {"total_parameters": plan.parameters, "total_size": plan.bytes_to_write}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2, ensure_ascii=False) + "\n"
