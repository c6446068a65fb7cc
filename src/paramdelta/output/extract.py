"""Writes a Δ as a folder of its own: read, halved, compressed and written block by block.

How post and base correspond is what the plan of a mix onto post says. The format is that of
`checkpoint.delta`. Threads make runs of blocks and one writes them in order, so that the same
checkpoints give the same bytes. There is no journal: a Δ is written once, at the disk's speed, and
a run that was killed begins again. All is done in a hidden folder beside the output, whose weight
files carry the ending ``.part`` and which has no description until every byte is on disk.
"""

import hashlib
import itertools
import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import numpy as np

from paramdelta.dtypes import DTYPES
from paramdelta.engine.run import Inputs
from paramdelta.engine.slices import OVERHEAD
from paramdelta.engine.threads import TICK, Progress
from paramdelta.errors import UsageError
from paramdelta.formats.checkpoint import DELTA, Checkpoint
from paramdelta.formats.delta import BLOCK, FORMAT, MOST, VERSION, encode
from paramdelta.formats.view import View, float64
from paramdelta.output.card import delta_card
from paramdelta.output.companions import write_companions
from paramdelta.output.files import PART
from paramdelta.output.staging import whole_or_nothing
from paramdelta.planning.plan import OutputTensor, Pair, Plan
from paramdelta.storage.local import (
    File,
    raise_open_file_limit,
    write_text,
)
from paramdelta.storage.reader import Reader
from paramdelta.version import __version__

RUN = 4  # blocks that a thread reads and makes at a time
WIDEST = max(dtype.size for dtype in DTYPES.values())
ALIGNED = 64  # bytes: where the data of a weight file begins
_POSITION = 10**18  # stands for a position that is not known yet: none is longer
T = TypeVar("T")


@dataclass
class Shape:
    """What extraction found: numbers by how their Δ is stored.

    ``elements``: in all; ``halved``: in blocks of two halves.
    """

    elements: int = 0
    halved: int = 0


@dataclass(frozen=True)
class Made:
    """A written Δ. ``stored``: bytes of its weight files; ``base_sha256``: see `Digest`."""

    files: tuple[str, ...]
    stored: int
    base_sha256: str
    found: Shape


@dataclass
class Digest:
    """A digest of the numbers of a checkpoint, whatever its files are cut like.

    SHA-256 over one line of JSON a tensor, in the order of their names: name, dtype, shape and the
    SHA-256 digests of each run of `RUN` blocks of the tensor's bytes, as one hexadecimal text.
    """

    lines: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, view: View, runs: list[bytes]) -> None:
        """Take a whole tensor."""
        facts = [name, view.dtype, list(view.shape), b"".join(runs).hex()]
        self.lines[name] = json.dumps(facts, ensure_ascii=False) + "\n"

    def hexdigest(self) -> str:
        """The digest."""
        text = "".join(line for _, line in sorted(self.lines.items()))
        return hashlib.sha256(text.encode()).hexdigest()


def share_out(plan: Plan, memory: int, workers: int) -> tuple[int, int]:
    """Threads, and the bytes that they hold at the most beyond the interpreter and its libraries.

    Raises:
        UsageError: too little memory for one thread.
    """
    size = RUN * BLOCK * WIDEST
    views = [view for t in plan.tensors for p in t.pairs for view in (p.post, p.base)]
    scratch = max((view.scratch(size) for view in views), default=0)
    # A run of post and base as stored, one block of each as floats and as words, planes, the
    # block; and as many finished runs that wait for those before them.
    each = 2 * size + scratch + 4 * 8 * BLOCK + 2 * MOST + 2 * RUN * MOST
    workers = min(workers, (memory - OVERHEAD) // each)
    if workers < 1:
        raise UsageError(
            f"--memory {memory} is too little",
            expected=f"at least {each + OVERHEAD} bytes to extract this Δ",
        )
    return workers, workers * each + OVERHEAD


def write_delta(
    plan: Plan,
    out: Path,
    shard_size: int,
    workers: int,
    progress: Callable[[Progress], None],
) -> Made:
    """Write the Δ of a plan onto post; ``progress`` counts post's bytes.

    Raises:
        MisfitError: another run is writing it.
        CheckpointError, StorageError: reading or writing failed; nothing is left.
    """
    raise_open_file_limit()
    with whole_or_nothing(out, "extract") as staging:
        made = _Writer(plan, staging, shard_size, workers, progress).write()
        write_companions(plan.companions, staging, Reader())
        write_text(staging / "README.md", delta_card(plan, out, made.base_sha256))
        for name in made.files:
            (staging / (name + PART)).rename(staging / name)
        write_text(staging / DELTA, _description(plan, made))
    return made


def _description(plan: Plan, made: Made) -> str:
    (post, base), *_ = plan.lineages
    assert base is not None
    about = {
        "delta_version": VERSION,
        "post": _source(post),
        "base": {**_source(base), "sha256": made.base_sha256},
        "files": list(made.files),
        "deltas": sum(bool(tensor.pairs) for tensor in plan.tensors),
        "whole": sum(not tensor.pairs for tensor in plan.tensors),
        "versions": {"paramdelta": __version__},
    }
    return json.dumps(about, indent=2, ensure_ascii=False) + "\n"


def _source(source: Checkpoint) -> dict[str, Any]:
    """What a checkpoint was, for strangers: no path of this machine."""
    public = source.location.pinned if source.location.repo else source.location.name
    files = [
        {"name": f.blob.name, "size": f.blob.size, "header_sha256": f.header_sha256}
        for f in source.sources
    ]
    return {"name": public, "files": files}


# -- the weight files ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """A run of a tensor's blocks, made: the blocks, in how many halves, digest of base's bytes."""

    blocks: tuple[bytes, ...]
    halves: tuple[int, ...]
    base_sha256: bytes


class _Writer:
    """Writes all weight files of one Δ."""

    def __init__(
        self,
        plan: Plan,
        staging: Path,
        shard_size: int,
        workers: int,
        progress: Callable[[Progress], None],
    ) -> None:
        self.staging = staging
        self.workers = workers
        self.progress = progress
        self.total = sum(tensor.new.nbytes for tensor in plan.tensors)
        self.done = self.stored = 0
        self.shown = 0.0
        self.inputs = Inputs()
        self.digest = Digest()
        self.found = Shape()
        self.shards = list(_grouped(plan.tensors, shard_size))

    def write(self) -> Made:
        """Write every file and sync it."""
        names = [
            f"delta-{number:05d}-of-{len(self.shards):05d}.safetensors"
            for number in range(1, len(self.shards) + 1)
        ]
        with ThreadPoolExecutor(self.workers, "paramdelta-extract") as pool:
            try:
                for name, tensors in zip(names, self.shards, strict=True):
                    self._shard(name, tensors, pool)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                self.inputs.close()
        self._show()
        return Made(tuple(names), self.stored, self.digest.hexdigest(), self.found)

    def _shard(self, name: str, tensors: Sequence[OutputTensor], pool: ThreadPoolExecutor) -> None:
        """Write one file: room for the header, the tensors, then the header."""
        reserved = len(_header([(t, _POSITION, 0) for t in tensors], 0))
        file = File(self.staging / (name + PART), os.O_RDWR | os.O_CREAT)
        try:
            written, position = [], reserved
            for tensor in tensors:
                write = self._delta if tensor.pairs else self._whole
                end, halves = write(file, position, tensor, pool)
                written.append((tensor, end - reserved, halves))
                position = end
            file.write(memoryview(_header(written, reserved)), 0)
            file.sync()
        finally:
            file.close()
        self.stored += position

    def _delta(
        self, file: File, position: int, tensor: OutputTensor, pool: ThreadPoolExecutor
    ) -> tuple[int, int]:
        """Write one stream from ``position`` on; where it ends, and its halves."""
        (pair,) = tensor.pairs
        count = -(-tensor.elements // BLOCK)
        ends, digests, most = [8 * count], [], 0
        for start, stop, piece in self._made(tensor, partial(self._make, pair), pool):
            file.write(memoryview(b"".join(piece.blocks)), position + ends[-1])
            for number, (block, halves) in enumerate(
                zip(piece.blocks, piece.halves, strict=True), start // BLOCK
            ):
                ends.append(ends[-1] + len(block))
                size = min(BLOCK, tensor.elements - number * BLOCK)
                self.found.halved += size if halves == 2 else 0
                most = max(most, halves)
            self.found.elements += stop - start
            digests.append(piece.base_sha256)
        file.write(memoryview(struct.pack(f"<{count}Q", *ends[1:])), position)
        self.digest.add(tensor.name, pair.base, digests)
        return position + ends[-1], most

    def _make(self, pair: Pair, start: int, stop: int) -> _Piece:
        post = pair.post.array(start, stop, self.inputs.fetch)
        base = pair.base.array(start, stop, self.inputs.fetch)
        blocks, halves = [], []
        with np.errstate(all="ignore"):  # NaN are met, and kept
            for begin in range(0, stop - start, BLOCK):
                part = slice(begin, begin + BLOCK)
                block, used = encode(
                    float64(post[part], pair.post.dtype), float64(base[part], pair.base.dtype)
                )
                blocks.append(block)
                halves.append(used)
        return _Piece(tuple(blocks), tuple(halves), hashlib.sha256(base.data.cast("B")).digest())

    def _whole(
        self, file: File, position: int, tensor: OutputTensor, pool: ThreadPoolExecutor
    ) -> tuple[int, int]:
        """Copy a tensor that has no Δ to ``position``; where it ends."""
        view = tensor.new

        def read(start: int, stop: int) -> bytes:
            return view.array(start, stop, self.inputs.fetch).tobytes()

        for start, _, data in self._made(tensor, read, pool):
            file.write(memoryview(data), position + start * view.kind.size)
        return position + view.kind.nbytes(view.elements), 0

    def _made(
        self, tensor: OutputTensor, make: Callable[[int, int], T], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, int, T]]:
        """``start``, ``stop`` and what was made of each run of a tensor, in order."""
        waiting: deque[tuple[int, int, Future[T]]] = deque()
        starts = iter(range(0, tensor.elements, RUN * BLOCK))
        size = tensor.new.nbytes / max(1, tensor.elements)
        before = self.done
        while True:
            for start in itertools.islice(starts, 2 * self.workers - len(waiting)):
                stop = min(start + RUN * BLOCK, tensor.elements)
                waiting.append((start, stop, pool.submit(make, start, stop)))
            if not waiting:
                break
            start, stop, future = waiting.popleft()
            yield start, stop, future.result()
            self.done = before + round(stop * size)
            if monotonic() - self.shown >= TICK:
                self._show()
        self.done = before + tensor.new.nbytes

    def _show(self) -> None:
        self.shown = monotonic()
        self.progress(Progress(self.done, self.total, 0, self.inputs.read))


def _grouped(
    tensors: Sequence[OutputTensor], shard_size: int
) -> Iterator[tuple[OutputTensor, ...]]:
    """Tensors file by file: in each at most ``shard_size`` bytes of post, whole ones first."""
    group: list[OutputTensor] = []
    size = 0
    for tensor in tensors:
        if group and size + tensor.new.nbytes > shard_size:
            yield _ordered(group)
            group, size = [], 0
        group.append(tensor)
        size += tensor.new.nbytes
    yield _ordered(group)


def _ordered(group: Sequence[OutputTensor]) -> tuple[OutputTensor, ...]:
    """Whole tensors before streams, wider elements first: they stay aligned."""
    return tuple(sorted(group, key=lambda t: (bool(t.pairs), -t.new.kind.size)))


def _header(written: Sequence[tuple[OutputTensor, int, int]], size: int) -> bytes:
    """The header of a file: tensors, where they end in the data, halves; padded to ``size``.

    Without a size: one that is as long as any with these tensors can be.
    """
    deltas = {
        tensor.name: {"shape": list(tensor.shape), "halves": halves}
        for tensor, _, halves in written
        if tensor.pairs
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "block": str(BLOCK),
        "deltas": json.dumps(deltas, ensure_ascii=False),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for tensor, end, _ in written:
        stream = bool(tensor.pairs)
        begin, length = (begin, end - begin) if size else (_POSITION, _POSITION)
        header[tensor.name] = {
            "dtype": "U8" if stream else tensor.new.dtype,
            "shape": [length] if stream else list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (max(size, -(-(8 + len(text)) // ALIGNED) * ALIGNED) - 8 - len(text))
    return len(text).to_bytes(8, "little") + text
