"""A stored Δ: the difference of two checkpoints, compressed without loss.

The folder holds ``paramdelta.delta.json`` (a description, and its weight files), safetensors files
``delta-00001-of-0000N.safetensors`` and post's companions. A weight file is plain safetensors:

- a tensor that the metadata's ``deltas`` names (JSON: name to ``{"shape", "halves"}``) is a U8
stream
  that holds the Δ of the tensor of that name and shape;
- any other tensor has no Δ (integers, buffers, tensors that base lacks) and is stored as in post.

A stream cuts the elements, row-major, into blocks of `BLOCK`. It starts with a table: for each
block, the position in the stream where it ends, as 8 bytes little-endian. The blocks follow without
gaps. A block holds one or two numbers per element: the *halves*, whose difference is the Δ. If
float64 holds the Δ exactly, and no sign of a zero is lost, the first half is the Δ and the second
is zero; otherwise they are the numbers of post and base (see `planes.halve`). Each number is a word
of 64 bits (see `planes`). The first bytes of all words are plane 0, the second bytes plane 1, and
so on. Planes that contain only zeros are left out. A block is

- 2 bytes: which planes of the first half are present (bit 0: plane 0), and which of the second;
- 4 bytes little-endian: the CRC-32 of those 2 bytes and of the sizes that follow;
- 4 bytes little-endian for each plane that is present: the size of its frame;
- the frames: each plane as one zstd frame with its size and a checksum (RFC 8878).

A Δ can be read without its base. One read of the table finds any run. Nothing in memory is larger
than `BLOCK` implies, whatever a file claims.
"""

import itertools
import json
import math
import re
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from paramdelta.documents import parse_json
from paramdelta.errors import CheckpointError
from paramdelta.formats.checkpoint import (
    DELTA,
    Checkpoint,
    SourceFile,
    read_header,
)
from paramdelta.formats.view import Fetch, Tensor, View, Zeros, cache_of, leaves, mapped
from paramdelta.storage.files import Files

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FORMAT = "paramdelta-delta"  # the metadata's "format"; loaders of models refuse it
VERSION = 1
BLOCK = 1 << 16  # elements; a plane is one zstd block with one table of Huffman codes
PLANES = 8
KEPT = 4 << 20  # bytes of decoded blocks that stay in memory, for all threads together
_ENTRY = 8  # bytes of an entry of the table
_FRAME = BLOCK + 64  # bytes of the longest frame: incompressible data is stored as it is
_SIZES = 6  # bytes of a block before the sizes of its frames
MOST = _SIZES + 2 * PLANES * (4 + _FRAME)  # bytes of the longest block
_NAME = re.compile(r"[^/\\:\x00]+\.safetensors")


# -- zstd ------------------------------------------------------------------------------------------


def compress(plane: bytes) -> bytes:
    """A plane as one zstd frame.

    The fastest strategy, the smallest table and the longest match: bytes of weights hardly ever
    repeat, and accidental matches cost more than they save. The Huffman coder does the work
    (measured in ``benchmarks/results/deltas.json``).
    """
    return _tools().compressor.compress(plane)


def decompress(frame: bytes, size: int) -> bytes:
    """The ``size`` bytes of a frame.

    Raises:
        ValueError: not a frame of that size; nothing larger is allocated.
    """
    import zstandard

    try:
        facts = zstandard.get_frame_parameters(frame)
        if facts.content_size != size or not facts.has_checksum or facts.dict_id:
            raise ValueError(f"a frame of {facts.content_size} bytes, expected {size}")
        if facts.window_size > 1 << 17:
            raise ValueError(f"a window of {facts.window_size} bytes")
        plane = _tools().decompressor.decompress(
            frame, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    if len(plane) != size:
        raise ValueError(f"{len(plane)} bytes, expected {size}")
    return plane


class _Tools(threading.local):
    """zstd contexts, one per thread."""

    def __init__(self) -> None:
        import zstandard

        parameters = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            window_log=16,
            hash_log=6,
            chain_log=6,
            search_log=1,
            min_match=7,
            target_length=0,
            write_checksum=True,
            write_content_size=True,
        )
        self.compressor = zstandard.ZstdCompressor(compression_params=parameters)
        self.decompressor = zstandard.ZstdDecompressor()


_made: list[_Tools] = []


def _tools() -> _Tools:
    if not _made:
        _made.append(_Tools())
    return _made[0]


# -- blocks ----------------------------------------------------------------------------------------


def encode(post: "npt.NDArray[np.float64]", base: "npt.NDArray[np.float64]") -> tuple[bytes, int]:
    """One block of at most `BLOCK` elements, and the number of its halves (0 to 2)."""
    import numpy as np

    from paramdelta.arithmetic import planes  # compiled code, not needed for planning

    words = np.empty((2, post.size), np.uint64)
    masks, frames = [], []
    for half, used in zip(words, planes.halve(post, base, *words), strict=True):
        columns = half.view(np.uint8).reshape(-1, PLANES)
        there = [p for p in range(PLANES) if int(used) >> _shift(p) & 0xFF]
        masks.append(sum(1 << p for p in there))
        frames += [compress(columns[:, PLANES - 1 - p].tobytes()) for p in there]
    sizes = struct.pack(f"<{len(frames)}I", *map(len, frames))
    check = struct.pack("<I", zlib.crc32(bytes(masks) + sizes))
    return bytes(masks) + check + sizes + b"".join(frames), 2 if masks[1] else min(masks[0], 1)


def _shift(plane: int) -> int:
    """Bits below a plane in its word."""
    return 8 * (PLANES - 1 - plane)


def frames_of(block: memoryview, half: int) -> list[tuple[int, bytes]]:
    """The planes of one half of a block: their numbers and frames; raises ValueError."""
    if len(block) < _SIZES:
        raise ValueError("a block is too short")
    there = [(h, p) for h in (0, 1) for p in range(PLANES) if block[h] >> p & 1]
    start = _SIZES + 4 * len(there)
    if len(block) < start:
        raise ValueError("a block ends before its sizes")
    (check,) = struct.unpack("<I", block[2:_SIZES])
    if check != zlib.crc32(bytes(block[:2]) + bytes(block[_SIZES:start])):
        raise ValueError("the sizes in a block do not have their checksum")
    sizes = struct.unpack(f"<{len(there)}I", block[_SIZES:start])
    if start + sum(sizes) != len(block):
        raise ValueError(f"frames of {sum(sizes)} bytes in a block of {len(block)}")
    found = []
    for (h, plane), size in zip(there, sizes, strict=True):
        if h == half:
            found.append((plane, bytes(block[start : start + size])))
        start += size
    return found


def _decode(block: memoryview, half: int, words: "npt.NDArray[np.uint64]") -> None:
    """Fill ``words`` with the bits of one half's numbers; raises ValueError."""
    import numpy as np

    from paramdelta.arithmetic import planes

    words[:] = 0
    for plane, frame in frames_of(block, half):
        column = np.frombuffer(decompress(frame, words.size), np.uint8)
        planes.add_plane(words, column, _shift(plane))
    planes.to_floats(words)


# -- the Δ -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference(View):
    """One half of a stored Δ, in float64: number ``half`` of ``halves``. The Δ is half 0 − half 1.

    ``stream``: the compressed bytes.
    """

    stream: Tensor
    half: int
    halves: int

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The stream."""
        return (self.stream,)

    @property
    def is_stored(self) -> bool:
        """It is decoded."""
        return False

    @property
    def identity(self) -> list[Any]:
        """The stream, and which half."""
        return ["delta", self.stream.identity, self.half]

    def scratch(self, size: int) -> int:
        """A block as it is stored, as bytes and as words."""
        return 2 * MOST + 9 * BLOCK

    @property
    def caches(self) -> dict[str, int]:
        """Decoded blocks."""
        return {"delta": KEPT}

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Decode the blocks of the run. A block that is used in part is kept for the next read."""
        import numpy as np

        if start == stop:
            return
        kept = cache_of(fetch, "delta", lambda: _Kept(KEPT))
        out = np.frombuffer(into, np.uint64, stop - start)
        first, last = start // BLOCK, -(-stop // BLOCK)
        ends = self._ends(first, last, fetch)
        for number in range(first, last):
            begin = number * BLOCK
            end = min(begin + BLOCK, self.elements)
            here = slice(max(start, begin), min(stop, end))
            target = out[here.start - start : here.stop - start]
            if target.size == end - begin:
                self._block(number, ends, first, target, fetch)
                continue
            key = (self.stream, self.half, number)
            words = kept.get(key)
            if words is None:
                words = np.empty(end - begin, np.uint64)
                self._block(number, ends, first, words, fetch)
                kept.put(key, words)
            target[:] = words[here.start - begin : here.stop - begin]

    def _block(
        self,
        number: int,
        ends: list[int],
        first: int,
        words: "npt.NDArray[np.uint64]",
        fetch: Fetch,
    ) -> None:
        begin, end = ends[number - first], ends[number - first + 1]
        data = bytearray(end - begin)
        fetch(self.stream, begin, memoryview(data))
        try:
            _decode(memoryview(data), self.half, words)
        except ValueError as error:
            raise self._error(f"block {number}", "a block of a stored Δ", str(error)) from None

    def _ends(self, first: int, last: int, fetch: Fetch) -> list[int]:
        """Where block ``first`` begins and each block before ``last`` ends, checked."""
        table = _ENTRY * -(-self.elements // BLOCK)
        before = min(first, 1)
        raw = bytearray(_ENTRY * (last - first + before))
        fetch(self.stream, _ENTRY * (first - before), memoryview(raw))
        ends = list(struct.unpack(f"<{len(raw) // _ENTRY}Q", raw))
        ends = ends if before else [table, *ends]
        sizes = [end - begin for begin, end in itertools.pairwise(ends)]
        fits = all(_SIZES <= size <= MOST for size in sizes)
        if ends[0] < table or ends[-1] > self.stream.size or not fits:
            raise self._error(
                f"the table of blocks {first} to {last - 1}",
                f"consecutive blocks of {_SIZES} to {MOST} bytes within {self.stream.size} bytes",
                f"ends at {', '.join(map(str, ends[:4]))}",
            )
        return ends

    def _error(self, what: str, expected: str, got: str) -> CheckpointError:
        return CheckpointError(
            f"a stored Δ is damaged: {what}",
            code="damaged-delta",
            where=f"{self.stream.blob}, tensor {self.name!r}",
            expected=expected,
            got=got,
            remedy="get it again, or extract it again",
        )


def other_half(view: View) -> View:
    """What is subtracted from a stored Δ, however it is laid out; zeros if it has one half."""
    found = [leaf for leaf in leaves(view) if isinstance(leaf, Difference)]
    if not any(leaf.halves == 2 for leaf in found):
        return Zeros("zeros", view.dtype, view.shape)
    return mapped(
        view, lambda leaf: replace(leaf, half=1) if isinstance(leaf, Difference) else leaf
    )


class _Kept:
    """The blocks that were decoded last, at most ``limit`` bytes.

    Tasks come in order: one that ends within a block is followed by one that starts there.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._blocks: OrderedDict[Hashable, npt.NDArray[np.uint64]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> "npt.NDArray[np.uint64] | None":
        """A block, if it is there. The caller must not change it."""
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            return self._blocks.get(key)

    def put(self, key: Hashable, words: "npt.NDArray[np.uint64]") -> None:
        """Keep a block; the oldest ones make room."""
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = words
                self._size += words.nbytes
            while self._size > self.limit:
                _, oldest = self._blocks.popitem(last=False)
                self._size -= oldest.nbytes


# -- the folder ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredDelta:
    """An opened Δ. All names are those of post.

    ``checkpoint``: where it is, its tensors and Δs, its files and companions. ``deltas``: by
    tensor, the first half of its Δ (see `other_half`). ``whole``: tensors without a Δ, as in post.
    ``about``: the description.
    """

    checkpoint: Checkpoint
    deltas: Mapping[str, Difference]
    whole: Mapping[str, View]
    about: Mapping[str, Any]

    @property
    def origin(self) -> str:
        """What it is the difference of."""
        return " − ".join(_name(self.about.get(role)) for role in ("post", "base"))


def _name(source: Any) -> str:
    name = source.get("name") if isinstance(source, Mapping) else None
    return name if isinstance(name, str) else "?"


def open_delta(files: Files, role: str) -> StoredDelta:
    """Read a stored Δ's description and headers.

    Raises:
        CheckpointError: not a stored Δ, or a damaged or hostile one.
        StorageError: a file cannot be read.
    """
    folder = files.location.url
    if DELTA not in files:
        raise CheckpointError(
            "no stored Δ here",
            code="no-stored-delta",
            where=folder,
            expected=f"a folder with {DELTA}",
        )
    about = files.json(DELTA)
    where = str(files[DELTA])
    if about.get("delta_version") != VERSION:
        raise CheckpointError(
            "unknown version of a stored Δ",
            code="unknown-version",
            where=where,
            expected=f"delta_version {VERSION}",
            got=f"delta_version {about.get('delta_version')!r}",
            remedy="use the version of paramdelta that wrote it, or a later one",
        )
    deltas: dict[str, Difference] = {}
    whole: dict[str, View] = {}
    sources: list[SourceFile] = []
    for name in _files(about, where):
        if name not in files:
            raise CheckpointError(
                "a file of the Δ is missing", code="missing-delta-file", where=f"{folder}, {name}"
            )
        blob = files[name]
        source, tensors, metadata = read_header(files.reader, blob)
        sources.append(source)
        described = _described(metadata, str(blob))
        for tensor in tensors:
            if tensor.name in deltas or tensor.name in whole:
                raise CheckpointError(
                    f"tensor {tensor.name!r} is in two files", code="duplicate-tensor", where=folder
                )
            info = described.pop(tensor.name, None)
            if info is None:
                whole[tensor.name] = tensor
            else:
                deltas[tensor.name] = _difference(tensor, info)
        if described:
            raise CheckpointError(
                f"the Δ of tensor {next(iter(described))!r} is missing",
                code="invalid-delta",
                where=str(blob),
            )
    views: dict[str, View] = {**deltas, **whole}
    config = files.json("config.json")
    checkpoint = Checkpoint(role, files.location, views, tuple(sources), files, config)
    return StoredDelta(checkpoint, deltas, whole, about)


def _files(about: Mapping[str, Any], where: str) -> list[str]:
    files = about.get("files")
    plain = (
        isinstance(files, list)
        and files
        and all(isinstance(name, str) and _NAME.fullmatch(name) for name in files)
    )
    if not plain or len(set(files or ())) != len(files or ()):
        raise CheckpointError(
            "the description names no files, or names that are not plain .safetensors names",
            code="invalid-delta",
            where=where,
            expected="files of the same folder, each once",
            got=repr(files)[:80],
        )
    return list(files or ())


def _described(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """The entries of the metadata by tensor, checked."""
    if metadata.get("format") != FORMAT or metadata.get("block") != str(BLOCK):
        raise CheckpointError(
            "the file is not part of a stored Δ",
            code="invalid-delta",
            where=where,
            expected=f"metadata with format {FORMAT} and block {BLOCK}",
            got=str({key: metadata[key][:40] for key in ("format", "block") if key in metadata}),
        )
    try:
        described = parse_json(metadata.get("deltas", "").encode("utf-8", "surrogatepass"))
        if not isinstance(described, dict):
            raise ValueError("it is not an object")
        for name, info in described.items():
            shape, halves = info["shape"], info["halves"]
            sized = isinstance(shape, list) and all(
                type(n) is int and 0 <= n < 2**63 for n in shape
            )
            if not sized or type(halves) is not int or not 0 <= halves <= 2:
                raise ValueError(f"{name!r}: {json.dumps(info)[:60]}")
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            "the deltas in the metadata cannot be read",
            code="invalid-delta",
            where=where,
            expected='{"name": {"shape": [sizes], "halves": 0 to 2}}',
            got=str(error) or type(error).__name__,
        ) from None
    return described


def _difference(stream: Tensor, info: Mapping[str, Any]) -> Difference:
    shape = tuple(info["shape"])
    blocks = -(-math.prod(shape) // BLOCK)
    if (
        stream.dtype != "U8"
        or len(stream.shape) != 1
        or not (_ENTRY + _SIZES) * blocks <= stream.size <= (_ENTRY + MOST) * blocks
    ):
        raise CheckpointError(
            f"the stream of tensor {stream.name!r} cannot hold a Δ of its shape",
            code="invalid-delta",
            where=str(stream.blob),
            expected=f"U8, {(_ENTRY + _SIZES) * blocks} to {(_ENTRY + MOST) * blocks} bytes "
            f"for {list(shape)}",
            got=f"{stream.dtype} {list(stream.shape)}",
        )
    return Difference(stream.name, "F64", shape, stream, 0, info["halves"])
