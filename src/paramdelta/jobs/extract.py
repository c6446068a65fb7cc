"""Extraction: a Δ as a folder of its own, in the format of `formats.delta`.

The plan of a mix onto post says how post and base correspond. A task is a run of blocks; the driver
writes the runs in order, so that the same checkpoints give the same bytes. There is no journal: a Δ
is written once, at the disk's speed, and a run that was killed starts again.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from paramdelta.documents import to_json
from paramdelta.dtypes import DTYPES
from paramdelta.engine.memory import Need
from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.formats.delta import BLOCK, FORMAT, MOST, VERSION, encode
from paramdelta.formats.safetensors import encode_header
from paramdelta.formats.view import Fetch, View, fetch_from, float64
from paramdelta.output.folder import FolderSink
from paramdelta.planning.plan import OutputTensor, Plan
from paramdelta.storage.digest import ALGORITHM
from paramdelta.storage.local import File
from paramdelta.storage.reader import Reader
from paramdelta.version import __version__

RUN = 4  # blocks in a task
WIDEST = max(dtype.size for dtype in DTYPES.values())
ALIGNED = 64  # bytes: where the data of a weight file begins
_POSITION = 10**18  # stands for a position that is not known yet: no position is longer


@dataclass(frozen=True)
class Made:
    """A written Δ.

    ``stored``: bytes of its weight files. ``base_sha256``: see `Digest`. ``elements``: numbers of
    all tensors that have a Δ.
    """

    files: tuple[str, ...]
    stored: int
    base_sha256: str
    elements: int


@dataclass
class Digest:
    """A digest of the numbers of a checkpoint, however they are distributed over files.

    SHA-256 over one line of JSON per tensor, in the order of their names: name, dtype, shape and
    the SHA-256 digests of each run of `RUN` blocks of the tensor's bytes, as one hexadecimal text.
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


@dataclass(frozen=True)
class Task:
    """Elements ``start`` to ``stop`` of a tensor: number ``tensor`` of file ``file``."""

    file: int
    tensor: int
    start: int
    stop: int


@dataclass(frozen=True)
class Run:
    """A run of blocks: their bytes, in how many halves each is, SHA-256 of base's bytes.

    Of a tensor without a Δ, one "block": its bytes as post has them.
    """

    blocks: tuple[bytes, ...]
    halves: tuple[int, ...] = ()
    base_sha256: bytes = b""


class ExtractJob:
    """Compresses every Δ. ``sink``: where the driver writes; None in a copy made by pickle."""

    lead = 2

    def __init__(
        self, tensors: Sequence[OutputTensor], shard_size: int, sink: FolderSink | None
    ) -> None:
        self.shards = tuple(_grouped(tensors, shard_size))
        self.sink = sink
        self.digest = Digest()
        self.elements = 0
        self.stored = 0
        self._file: _WeightFile | None = None
        self._runs: list[Run] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sink": None, "_file": None}

    @property
    def names(self) -> tuple[str, ...]:
        """The weight files."""
        count = len(self.shards)
        return tuple(f"delta-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1))

    def tasks(self) -> Sequence[Task]:
        """See `Job.tasks`. A tensor without elements is one task, so that it is written as well."""
        return [
            Task(number, at, start, min(start + RUN * BLOCK, tensor.elements))
            for number, tensors in enumerate(self.shards)
            for at, tensor in enumerate(tensors)
            for start in range(0, max(1, tensor.elements), RUN * BLOCK)
        ]

    def cost(self, task: Task) -> int:
        """Bytes of post."""
        view = self.shards[task.file][task.tensor].new
        each = view.nbytes / max(1, view.elements)
        return round(task.stop * each) - round(task.start * each)

    def need(self, buffer: int) -> Need:
        """What a run holds; the size of buffers does not matter."""
        size = RUN * BLOCK * WIDEST
        views = [v for ts in self.shards for t in ts for p in t.pairs for v in (p.post, p.base)]
        scratch = max((view.scratch(size) for view in views), default=0)
        caches = {kind: held for view in views for kind, held in view.caches.items()}
        # A run of post and base as stored; one block of each as floats and as words, planes, the
        # block; and finished runs that wait for those before them.
        each = 2 * size + scratch + 4 * 8 * BLOCK + 2 * MOST + 2 * RUN * MOST
        return Need(each, sum(caches.values()))

    def worker(self, reader: Reader, writers: Sequence[Any]) -> Callable[[Task], Run]:
        """See `Job.worker`."""
        return partial(self._run, fetch_from(reader))

    def collect(self, task: Task, receipt: Run) -> None:
        """Write a run. At the end of a tensor and of a file, complete them."""
        tensors = self.shards[task.file]
        tensor = tensors[task.tensor]
        assert self.sink is not None
        if self._file is None:
            self._file = _WeightFile(self.sink.create(self.names[task.file]), tensors)
        self._file.append(task, receipt)
        self._runs.append(replace(receipt, blocks=()))  # the bytes are written
        if task.stop < tensor.elements:
            return
        if tensor.pairs:
            digests = [run.base_sha256 for run in self._runs if task.stop]
            self.digest.add(tensor.name, tensor.pairs[0].base, digests)
            self.elements += tensor.elements
        self._file.end_tensor()
        self._runs = []
        if task.tensor == len(tensors) - 1:
            self.stored += self._file.end()
            self._file = None

    def made(self) -> Made:
        """What was written, when all tasks are collected."""
        return Made(self.names, self.stored, self.digest.hexdigest(), self.elements)

    def _run(self, fetch: Fetch, task: Task) -> Run:
        tensor = self.shards[task.file][task.tensor]
        if task.start == task.stop:
            return Run(())
        if not tensor.pairs:
            return Run((tensor.new.array(task.start, task.stop, fetch).tobytes(),))
        (pair,) = tensor.pairs
        post = pair.post.array(task.start, task.stop, fetch)
        base = pair.base.array(task.start, task.stop, fetch)
        blocks, halves = [], []
        with np.errstate(all="ignore"):  # NaN occurs, and is kept
            for begin in range(0, task.stop - task.start, BLOCK):
                part = slice(begin, begin + BLOCK)
                block, used = encode(
                    float64(post[part], pair.post.dtype), float64(base[part], pair.base.dtype)
                )
                blocks.append(block)
                halves.append(used)
        return Run(tuple(blocks), tuple(halves), hashlib.sha256(base.data.cast("B")).digest())


class _WeightFile:
    """One weight file in the making: room for the header, the tensors, then the header."""

    def __init__(self, file: File, tensors: Sequence[OutputTensor]) -> None:
        self.file = file
        self.tensors = tensors
        self.room = len(_header([(tensor, None, 0) for tensor in tensors], 0))
        self.written: list[tuple[OutputTensor, int | None, int]] = []
        self.begin = self.end_ = self.room
        self.ends: list[int] = []
        self.halves = 0

    def append(self, task: Task, run: Run) -> None:
        """Write a run of the tensor that is being written."""
        tensor = self.tensors[task.tensor]
        if task.start == 0 and tensor.pairs:  # the table of blocks comes first
            self.ends = [8 * -(-tensor.elements // BLOCK)]
            self.end_ = self.begin + self.ends[0]
        if run.blocks:
            self.file.write(memoryview(b"".join(run.blocks)), self.end_)
            self.end_ += sum(map(len, run.blocks))
        if tensor.pairs:
            for block in run.blocks:
                self.ends.append(self.ends[-1] + len(block))
            self.halves = max(self.halves, *run.halves, 0)

    def end_tensor(self) -> None:
        """Write the table of a stream; note where the tensor ends."""
        tensor = self.tensors[len(self.written)]
        if tensor.pairs and len(self.ends) > 1:
            table = struct.pack(f"<{len(self.ends) - 1}Q", *self.ends[1:])
            self.file.write(memoryview(table), self.begin)
        self.written.append((tensor, self.end_ - self.room, self.halves))
        self.begin, self.ends, self.halves = self.end_, [], 0

    def end(self) -> int:
        """Write the header; the bytes of the file."""
        self.file.write(memoryview(_header(self.written, self.room)), 0)
        return self.end_


def description(plan: Plan, made: Made, outputs: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of paramdelta.delta.json. ``outputs``: size and content digest of every file."""
    (post, base), *_ = plan.lineages
    assert base is not None
    about = {
        "delta_version": VERSION,
        "post": source_facts(post),
        "base": {**source_facts(base), "sha256": made.base_sha256},
        "options": option_facts(plan),
        "files": list(made.files),
        "digest_algorithm": ALGORITHM,
        "outputs": dict(sorted(outputs.items())),
        "deltas": sum(bool(tensor.pairs) for tensor in plan.tensors),
        "whole": sum(not tensor.pairs for tensor in plan.tensors),
        "versions": {"paramdelta": __version__},
    }
    return to_json(about)


def option_facts(plan: Plan) -> dict[str, Any]:
    """How post and base correspond, for who wants to compare them again."""
    recipe = plan.recipe
    return {
        "vocabulary": recipe.vocabulary,
        "maps": list(recipe.maps),
        "allow": list(recipe.allow),
    }


def source_facts(source: Checkpoint) -> dict[str, Any]:
    """What a checkpoint was, without any path of this machine."""
    public = source.location.pinned if source.location.repo else source.location.name
    files = [
        {"name": f.name, "size": f.blob.size, "header_sha256": f.header_sha256}
        for f in source.sources
    ]
    return {"name": public, "files": files}


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


def _header(written: Sequence[tuple[OutputTensor, int | None, int]], size: int) -> bytes:
    """The header of a file: tensors, where they end in the data, halves; padded to ``size``.

    An end of None stands for one that is not known yet: the result is as long as any can be.
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
    entries = []
    begin = 0
    for tensor, known, _ in written:
        end = _POSITION if known is None else known
        begin, length = (_POSITION, _POSITION) if known is None else (begin, end - begin)
        stream = bool(tensor.pairs)
        dtype = "U8" if stream else tensor.new.dtype
        shape = (length,) if stream else tensor.shape
        entries.append((tensor.name, dtype, shape, begin, end))
        begin = end
    return encode_header(entries, metadata, ALIGNED, size)
