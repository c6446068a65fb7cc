"""Stored Δ: what a block gives back, what is read of a stream, and what is refused."""

import contextlib
import json
import math
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta.errors import CheckpointError
from paramdelta.formats import delta
from paramdelta.formats.delta import BLOCK, KEPT, MOST, Difference, encode, other_half
from paramdelta.formats.view import Part, Rows, Tensor, Transposed, Wide, Zeros, float64
from paramdelta.schemes.pair import Pair
from paramdelta.schemes.scheme import BLOCK as RUN
from paramdelta.schemes.scheme import SCRATCH
from paramdelta.schemes.sum import SUM
from paramdelta.storage.blob import Blob
from tests import opening
from tests.numbers import BITS, VIEWS, array, patterns

DTYPES = ("BF16", "F16", "F32", "F64")


def halves(post, base):
    """Both halves of a block, as they come back."""
    block, used = encode(post, base)
    assert len(block) <= MOST
    found = np.empty((2, post.size), np.uint64)
    for half in (0, 1):
        delta._decode(memoryview(block), half, found[half])
    assert used == 2 or not found[1].any()
    return found.view(np.float64)


def mixed(dtype, new, post, base, scale, kinds):
    """``new + scale (post − base)`` by the engine's arithmetic, as bits."""
    views = [
        Tensor(n, k, a.shape, Blob("x", 0, ""), 0, a.nbytes)
        for n, k, a in zip("npb", (dtype, *kinds), (new, post, base), strict=True)
    ]
    pairs = (Pair(0, views[1], views[2], float(scale)),)
    out = np.empty(new.size, VIEWS[dtype])
    SUM.combine(pairs, [new, post, base], 0, out, dtype, np.empty((SCRATCH, RUN)))
    return out.view(BITS[dtype])


@st.composite
def triples(draw):
    """A dtype of the output, one of post and base, and bit patterns that often meet each other."""
    dtype, other = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    length = draw(st.integers(1, 40))
    lists = [
        draw(st.lists(patterns(kind), min_size=length, max_size=length))
        for kind in (dtype, other, other)
    ]
    for i in range(length):  # equal operands, of equal and of other signs, are what zeros come from
        if draw(st.booleans()):
            lists[2][i] = lists[1][i]
        if dtype == other and draw(st.booleans()):
            lists[0][i] = draw(st.sampled_from((lists[1][i], lists[2][i])))
    return dtype, other, *lists


@given(triples(), st.sampled_from((1, 0.7, -1, -0.3, 1e300)))
@settings(max_examples=300)
def test_the_halves_mix_as_post_and_base_do(given, scale):
    """Bytes are the same at any scale: NaN, infinities, subnormals, zeros of both signs."""
    dtype, other, *lists = given
    new, post, base = (array(x, k) for x, k in zip(lists, (dtype, other, other), strict=True))
    with np.errstate(all="ignore"):
        one, two = halves(float64(post, other), float64(base, other))
    expected = mixed(dtype, new, post, base, scale, (other, other))
    assert mixed(dtype, new, one, two, scale, ("F64", "F64")).tolist() == expected.tolist()


@given(st.sampled_from(DTYPES), st.data())
@settings(max_examples=200)
def test_base_and_delta_give_post_and_back(dtype, data):
    """For finite numbers, base + Δ is post and post − Δ is base, to the sign of a zero."""
    length = data.draw(st.integers(1, 40))
    lists = [data.draw(st.lists(patterns(dtype), min_size=length, max_size=length)) for _ in "pb"]
    post, base = (array(x, dtype) for x in lists)
    with np.errstate(all="ignore"):
        wide = [float64(x, dtype) for x in (post, base)]
        one, two = halves(*wide)
        # A difference that float64 cannot hold may be infinite on the way, and is then lost.
        finite = np.isfinite(wide[0]) & np.isfinite(wide[1]) & np.isfinite(wide[0] - wide[1])
    for new, scale, wanted in ((base, 1, post), (post, -1, base)):
        got = mixed(dtype, new, one, two, scale, ("F64", "F64"))
        assert got[finite].tolist() == wanted.view(BITS[dtype])[finite].tolist()


@given(st.lists(st.tuples(patterns("F64"), patterns("F64")), min_size=1, max_size=50))
def test_halves_are_plain_where_they_can_be(pairs):
    """The first half is the difference and the second +0 wherever float64 holds it."""
    post, base = (array([p[i] for p in pairs], "F64") for i in (0, 1))
    with np.errstate(all="ignore"):
        one, two = halves(post, base)
        difference = post - base
    for p, b, x, y, d in zip(post, base, one, two, difference, strict=True):
        kept = struct.pack("<2d", x, y) == struct.pack("<2d", p, b)
        negative_zero = any(v == 0 and math.copysign(1, v) < 0 for v in (p, b))
        assert kept or (x == d and struct.pack("<d", y) == bytes(8))
        if np.isfinite(d) and p - d == b and b + d == p and not negative_zero and p != b:
            assert x == d
            assert not y or kept


def test_planes_that_are_zero_take_nothing():
    """A Δ of bfloat16 numbers of one size has two planes; of equal ones, none."""
    chance = np.random.default_rng(0)
    base = (chance.integers(128, 256, BLOCK)) / 256.0
    block, used = encode(base + 1 / 256, base)
    assert (block[0], block[1], used) == (0b1, 0, 1)
    assert len(block) < 100
    assert encode(base, base) == (b"\0\0" + zlib.crc32(bytes(2)).to_bytes(4, "little"), 0)


# -- streams ---------------------------------------------------------------------------------------


class Bytes:
    """A stream in memory; counts what is fetched."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    def fetch(self, tensor, start, into):
        """Copy a run of bytes; a file would refuse to read past its end."""
        self.reads.append((start, len(into)))
        if start + len(into) > len(self.data):
            raise CheckpointError("the file ends too early", code="truncated-file")
        into[:] = self.data[start : start + len(into)]


def stream(post, base):
    """A whole stream, as `extract` writes it."""
    blocks = [encode(post[i : i + BLOCK], base[i : i + BLOCK]) for i in range(0, post.size, BLOCK)]
    ends, end = [], 8 * len(blocks)
    for block, _ in blocks:
        end += len(block)
        ends.append(end)
    data = struct.pack(f"<{len(ends)}Q", *ends) + b"".join(block for block, _ in blocks)
    return data, max((used for _, used in blocks), default=0)


def view_of(data, used, shape):
    """The view on a stream."""
    stored = Tensor("w", "U8", (len(data),), Blob("delta.safetensors", 0, ""), 0, len(data))
    return Difference("w", "F64", shape, stored, 0, used)


@pytest.fixture(scope="module")
def long():
    """Three blocks and a bit of numbers, and their stream."""
    chance = np.random.default_rng(1)
    base = chance.normal(0, 0.02, 3 * BLOCK + 1234).astype(np.float32).astype(np.float64)
    post = (base + chance.normal(0, 1e-3, base.size)).astype(np.float32).astype(np.float64)
    return post, base, *stream(post, base)


@given(st.data())
@settings(max_examples=60)
def test_any_run_can_be_read(long, data):
    """Runs within blocks, across them and of nothing are what the whole is there."""
    post, base, raw, used = long
    view = view_of(raw, used, (post.size,))
    start = data.draw(st.integers(0, post.size))
    stop = data.draw(st.integers(start, min(post.size, start + 2 * BLOCK)))
    source = Bytes(raw)
    first = view.array(start, stop, source.fetch)
    second = other_half(view).array(start, stop, source.fetch)
    assert (first - second).tolist() == (post - base)[start:stop].tolist()


def test_a_short_run_reads_one_block(long):
    """A row costs the table's entries and its block, and, asked for again, the entries alone."""
    post, _, raw, used = long
    view, source = view_of(raw, used, (post.size,)), Bytes(raw)
    fetch = source.fetch  # the run's: caches belong to it
    view.array(2 * BLOCK + 5, 2 * BLOCK + 9, fetch)
    view.array(2 * BLOCK + 9, 2 * BLOCK + 900, fetch)
    assert [length for _, length in source.reads][0::2] == [16, 16][: len(source.reads) - 1]
    assert len(source.reads) == 3


def test_reading_is_bounded_in_memory(long):
    """Reading slice by slice holds no more than `scratch` says, beside the result."""
    post, _, raw, used = long
    view, source = view_of(raw, used, (post.size,)), Bytes(raw)
    fetch = source.fetch  # the run's: caches belong to it
    view.array(0, 10, fetch)  # compiles
    tracemalloc.start()
    for start in range(0, post.size - 3000, 3000):
        view.array(start, start + 3000, fetch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < view.scratch(24000) + 24000
    assert peak < KEPT + 4 * MOST


def test_the_other_half_follows_the_first():
    """However a Δ is laid out, the other half is; and zeros where there is none."""
    post, base = np.array([1.0, -0.0, np.nan, 4.0]), np.array([2.0, 5.0, 1.0, 4.0])
    raw, used = stream(post, base)
    assert used == 2
    view, source = view_of(raw, used, (2, 2)), Bytes(raw)
    turned = Transposed("t", "F64", (2, 2), view)
    rows = Rows("r", "F64", (3, 2), (view,), np.array([1, -1, 0], np.int32).tobytes())
    part = Part("p", "F64", (2,), Wide("w", "F64", (2, 2), view), 1)
    assert other_half(view).array(0, 4, source.fetch)[1:3].tolist() == [5.0, 1.0]
    assert other_half(turned).array(0, 4, source.fetch).tolist() == [0, 1, 5, 0]
    assert other_half(rows).array(0, 6, source.fetch).tolist() == [1, 0, 0, 0, 0, 5]
    assert other_half(part).array(0, 2, source.fetch).tolist() == [5, 1]
    plain = view_of(*stream(np.ones(4), np.zeros(4)), (2, 2))
    assert isinstance(other_half(Transposed("t", "F64", (2, 2), plain)), Zeros)


# -- damaged and hostile streams -------------------------------------------------------------------


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_stream_is_refused_or_harmless(data):
    """Any bytes changed or cut off: a CheckpointError, or the same numbers as before."""
    wanted = np.random.default_rng(2).normal(0, 1, 3000)
    raw, used = stream(wanted, np.zeros(3000))
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, 60), st.integers(0, len(damaged) - 1)))
        damaged[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(10, len(damaged)))]
    view = view_of(bytes(damaged), used, (3000,))
    for half in (view, other_half(view)):
        with contextlib.suppress(CheckpointError):
            found = half.array(0, 3000, Bytes(bytes(damaged)).fetch)
            assert found.tolist() == (wanted.tolist() if half is view else [0.0] * 3000)


def block_of(frame):
    """A block of one frame."""
    sizes = struct.pack("<I", len(frame))
    return b"\x01\x00" + struct.pack("<I", zlib.crc32(b"\x01\x00" + sizes)) + sizes + frame


def frame(size, **options):
    """A zstd frame of so many zeros."""
    return zstandard.ZstdCompressor(**({"write_checksum": True} | options)).compress(bytes(size))


HOSTILE = {
    "bomb": frame(1 << 28),
    "bomb of two frames": frame(100) + frame(1 << 20),
    "longer": frame(101),
    "shorter": frame(99),
    "no checksum": frame(100, write_checksum=False),
    "no size": frame(100, write_content_size=False),
    "garbage": b"\x28\xb5\x2f\xfd" + bytes(40),
    "nothing": b"",
    "skippable": struct.pack("<II", 0x184D2A50, 8) + bytes(8),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_frames_are_refused(name):
    """What a frame says of its size is not believed, and nothing large is allocated."""
    bad = HOSTILE[name]
    block = block_of(bad)
    raw = struct.pack("<Q", 8 + len(block)) + block
    view, source = view_of(raw, 1, (100,)), Bytes(raw)
    view.array(0, 0, source.fetch)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="block 0"):
        view.array(0, 100, source.fetch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "ends",
    [(0, 50), (16, 16), (40, 30), (17, 1 << 40), (2**64 - 1, 2**64 - 1), (30, MOST + 100)],
)
def test_hostile_tables_are_refused(ends):
    """Blocks that overlap the table or each other, lie beyond the stream, or are too large."""
    raw = struct.pack("<2Q", *ends) + bytes(MOST + 200)
    view = view_of(raw, 1, (BLOCK + 5,))
    with pytest.raises(CheckpointError, match="table"):
        view.array(0, BLOCK + 5, Bytes(raw).fetch)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_as_a_block(block, wrapped):
    """A block of arbitrary bytes raises ValueError and nothing else, or decodes."""
    block = block_of(block) if wrapped else block
    words = np.empty(10, np.uint64)
    with contextlib.suppress(ValueError):
        delta._decode(memoryview(block), 0, words)


# -- folders ---------------------------------------------------------------------------------------


def folder_of(path, *, about=None, metadata=None, tensors=None):
    """A Δ folder with one file, with something of it replaced."""
    raw, used = stream(np.ones(6), np.zeros(6))
    facts = {
        "format": delta.FORMAT,
        "version": "1",
        "block": str(BLOCK),
        "deltas": json.dumps({"w": {"shape": [2, 3], "halves": used}}),
    }
    header = {
        "__metadata__": facts | (metadata or {}),
        "w": {"dtype": "U8", "shape": [len(raw)], "data_offsets": [0, len(raw)]},
        **(tensors or {}),
    }
    text = json.dumps(header).encode()
    path.mkdir(exist_ok=True)
    name = "delta-00001-of-00001.safetensors"
    (path / name).write_bytes(struct.pack("<Q", len(text)) + text + raw)
    described = {"delta_version": 1, "files": [name]} | (about or {})
    (path / "paramdelta.delta.json").write_text(json.dumps(described))
    return path


def opened(path):
    """The Δ of a folder."""

    return opening.stored_delta(path)


def test_a_folder_is_opened(tmp_path):
    """Names, shapes and streams come from the header."""
    found = opened(folder_of(tmp_path / "d"))
    assert found.deltas["w"].shape == (2, 3)
    assert not found.whole
    assert found.origin == "? − ?"


BAD = {
    "version": {"about": {"delta_version": 2}},
    "no files": {"about": {"files": []}},
    "files are no list": {"about": {"files": "delta"}},
    "leaves the folder": {"about": {"files": ["../x.safetensors"]}},
    "twice": {"about": {"files": ["delta-00001-of-00001.safetensors"] * 2}},
    "absent": {"about": {"files": ["delta-00002-of-00002.safetensors"]}},
    "a model": {"metadata": {"format": "pt"}},
    "other blocks": {"metadata": {"block": "1"}},
    "no JSON": {"metadata": {"deltas": "{"}},
    "no object": {"metadata": {"deltas": "[]"}},
    "nested": {"metadata": {"deltas": "[" * 100_000}},
    "no shape": {"metadata": {"deltas": '{"w": {"halves": 1}}'}},
    "negative": {"metadata": {"deltas": '{"w": {"shape": [-1], "halves": 1}}'}},
    "huge": {"metadata": {"deltas": '{"w": {"shape": [4611686018427387904, 4], "halves": 1}}'}},
    "too many": {"metadata": {"deltas": '{"w": {"shape": [10000000], "halves": 1}}'}},
    "three halves": {"metadata": {"deltas": '{"w": {"shape": [6], "halves": 3}}'}},
    "true": {"metadata": {"deltas": '{"w": {"shape": [6], "halves": true}}'}},
    "of no tensor": {"metadata": {"deltas": '{"x": {"shape": [6], "halves": 1}}'}},
}


@pytest.mark.parametrize("name", BAD)
def test_hostile_folders_are_refused(tmp_path, name):
    """Descriptions and headers are checked before they are believed."""
    with pytest.raises(CheckpointError):
        opened(folder_of(tmp_path / "d", **BAD[name]))


@given(st.binary(min_size=1, max_size=8), st.integers(0, 400))
@settings(max_examples=150)
def test_fuzzed_headers(tmp_path_factory, noise, at):
    """A header with bytes replaced is refused with a CheckpointError, or still good."""
    path = folder_of(tmp_path_factory.mktemp("f") / "d")
    file = path / "delta-00001-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[at : at + len(noise)] = noise
    file.write_bytes(data)
    try:
        found = opened(path)
    except CheckpointError:
        return
    for view in found.deltas.values():
        with contextlib.suppress(CheckpointError):
            view.array(0, min(view.elements, 100), Bytes(bytes(data[-view.stream.size :])).fetch)
