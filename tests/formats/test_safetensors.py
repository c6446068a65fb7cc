"""The header parser, on good files, on the reference writer's, and on noise."""

import json
import struct
import time

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta.dtypes import DTYPES
from paramdelta.errors import CheckpointError
from paramdelta.formats.safetensors import MAX_AXES, MAX_NAME, header_length, parse_header


def parse(data: bytes):
    """Both steps, as the checkpoint does them."""
    length = header_length(data[:8], len(data), "file")
    return parse_header(data[8 : 8 + length], len(data), "file")


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda s: s != "__metadata__"),
        st.tuples(
            st.sampled_from(["float32", "float16", "int64", "bool", "uint8"]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=6,
    ),
    st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
)
@settings(deadline=None)
def test_reads_what_the_reference_writes(tensors, metadata):
    """Names, dtypes, shapes and bytes of files that safetensors itself wrote."""
    arrays = {name: np.ones(shape, dtype) for name, (dtype, shape) in tensors.items()}
    data = safetensors.numpy.save(arrays, metadata or None)
    entries, found = parse(data)
    assert found == metadata
    assert {e.name: e.shape for e in entries} == {n: a.shape for n, a in arrays.items()}
    for entry in entries:
        raw = data[entry.offset : entry.offset + entry.nbytes]
        assert raw == arrays[entry.name].tobytes()


@given(st.binary(max_size=200))
def test_noise_is_refused(data):
    """Random bytes raise CheckpointError and nothing else."""
    with pytest.raises(CheckpointError):
        parse(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(list(DTYPES)) | JSON,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | JSON,
    }
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRY | JSON), st.integers(0, 80)
)
@settings(max_examples=400)
def test_almost_headers_are_refused_or_right(header, size):
    """JSON that looks like a header is refused, or every tensor lies inside the file."""
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + b"\0" * size
    try:
        entries, _ = parse(data)
    except CheckpointError:
        return
    assert sum(e.nbytes for e in entries) == size
    assert all(8 + len(text) <= e.offset <= e.offset + e.nbytes <= len(data) for e in entries)


LAYOUTS = st.fixed_dictionaries(
    {
        "indent": st.none() | st.integers(0, 3) | st.just("\t"),
        "separators": st.sampled_from([(",", ":"), (" , ", " : "), ("\n,\r", "\t:")]),
        "ensure_ascii": st.booleans(),
        "sort_keys": st.booleans(),
    }
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.lists(NAMES, unique=True, max_size=6), st.randoms(use_true_random=False), LAYOUTS)
def test_any_layout_of_the_json_is_read(names, chance, layout):
    """Order of tensors and keys, white space and escapes do not matter."""
    header, expected, position = {}, {}, 0
    for name in names:
        shape = [chance.randrange(4) for _ in range(chance.randrange(4))]
        size = 2 * int(np.prod(shape, dtype=int))
        fields = {"dtype": "F16", "shape": shape, "data_offsets": [position, position + size]}
        pairs = list(fields.items())
        chance.shuffle(pairs)
        header[name], expected[name] = dict(pairs), (tuple(shape), position)
        position += size
    if "__metadata__" in header:
        return
    header["__metadata__"] = {name: name for name in names}
    pairs = list(header.items())
    chance.shuffle(pairs)
    text = b" " + json.dumps(dict(pairs), **layout).encode() + b" \n"
    entries, metadata = parse_header(text, 8 + len(text) + position, "file")
    assert {e.name: (e.shape, e.offset - 8 - len(text)) for e in entries} == expected
    assert metadata == {name: name for name in names}
    assert [e.offset for e in entries] == sorted(e.offset for e in entries)


A = '"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not an object"),
        ("", "not an object"),
        ("{" + A + ",}", "not valid JSON"),
        ("{" + A + "} x", "not valid JSON"),
        ("{" + A + "," + A.replace("[4]", "[0]").replace("[0,4]", "[4,4]") + "}", "same name"),
        ("{" + A + "," + A + "}", "overlaps"),
        ("{" + A.replace("[4]", "[4,]") + "}", "malformed tensor entry"),
        ("{" + A.replace("[4]", "[04]") + "}", "malformed tensor entry"),
        ("{" + A.replace("[4]", "[4.0]") + "}", "malformed shape"),
        ("{" + A.replace("[4]", f"[0{',99999999999' * 2}]") + "}", "malformed shape"),
        ("{" + A.replace("[4]", str([1] * (MAX_AXES + 1))) + "}", "too many axes"),
        ("{" + A.replace('"U8"', '"U9"') + "}", "unknown dtype"),
        ("{" + A.replace('"U8"', '["U8"]') + "}", "unknown dtype"),
        ("{" + A.replace("}", ',"x":1}') + "}", "malformed tensor entry"),
        ("{" + A.replace("}", ',"dtype":"U8"}') + "}", "malformed tensor entry"),
        ("{" + A.replace('"dtype":"U8",', "") + "}", "malformed tensor entry"),
        ("{" + A.replace("[0,4]", "[0,4,4]") + "}", "malformed data_offsets"),
        ("{" + A.replace("[0,4]", "[-1,3]") + "}", "malformed data_offsets"),
        ("{" + A.replace('"a"', '"' + "a" * (MAX_NAME + 1) + '"') + "}", "name is too long"),
        ("{" + A.replace('"a"', r'"\ud800"') + "}", "not valid text"),
        ("{" + A.replace('"a"', r'"\x"') + "}", "not valid text"),
        ("{" + A.replace("[0,4]", "[4,8]") + "}", "truncated"),
        ('{"__metadata__":{"a":1},' + A + "}", "not a map of strings"),
        ('{"__metadata__":{"a":"b","a":"b"},' + A + "}", "same name twice"),
        ('{"__metadata__":{},"__metadata__":{},' + A + "}", "same name twice"),
        ('{"__metadata__":{"a":"\\ud800"},' + A + "}", "not a map of strings"),
        ('{"__metadata__":' + A.partition(":")[2] + "}", "not a map of strings"),
    ],
)
def test_each_fault_is_named(text, message):
    """The message says what is wrong, not merely that something is."""
    with pytest.raises(CheckpointError, match=message):
        parse_header(text.encode(), 8 + len(text) + 4, "file")


def test_names_are_shown_without_control_characters():
    """An error prints a name's control characters as escapes, and cuts long names."""
    name = "\x1b[2J" + "a" * 500
    header = {name: {"dtype": "U9", "shape": [4], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    with pytest.raises(CheckpointError) as error:
        parse_header(text, 8 + len(text) + 4, "file")
    assert "'\\x1b[2Jaaa" in str(error.value)
    assert all(len(line) < 400 and line.isprintable() for line in str(error.value).split("\n"))


@given(st.binary(max_size=60), st.integers(0, 8))
def test_what_is_read_the_reference_reads_as_well(noise, size):
    """No header passes here that the reference reader refuses."""
    good = ("{" + A.replace("4", str(size)) + "}").encode()
    for text in (noise, good[:40] + noise, good[:-1] + noise + b"}", good + noise):
        data = struct.pack("<Q", len(text)) + text + bytes(size)
        try:
            entries, _ = parse(data)
        except CheckpointError:
            continue
        found = dict(safetensors.deserialize(data))
        assert {e.name: list(e.shape) for e in entries} == {n: i["shape"] for n, i in found.items()}


def test_flipped_bytes_never_escape():
    """A good header with any one byte changed is refused or still describes the file."""
    good = safetensors.numpy.save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    for place in range(len(good) - 32):
        for value in (0, 0x22, 0x7B, 0x39, 0xFF):
            data = good[:place] + bytes([value]) + good[place + 1 :]
            try:
                entries, _ = parse(data)
            except CheckpointError:
                continue
            assert max(e.offset + e.nbytes for e in entries) == len(data)


def entries(count, place):
    """A header of so many tensors of 4 bytes, and the size of a file that holds it."""
    items = (
        b'"t.%d":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}' % (n, place(n), place(n) + 4)
        for n in range(count)
    )
    text = b"{" + b",".join(items) + b"}"
    return text, 8 + len(text) + 4 * count


HUGE = {
    "overlapping": lambda: entries(100_000, lambda n: 0),
    "overlapping in a small file": lambda: (entries(100_000, lambda n: 0)[0], 10_000_000),
    "a hole at the end": lambda: entries(100_000, lambda n: 4 * n + 4 * (n == 99_999)),
    "spaces": lambda: (b"{" + b" " * 20_000_000, 30_000_000),
    "brackets": lambda: (b"{" + b"[" * 20_000_000, 30_000_000),
    "commas": lambda: (b"{" + b"," * 20_000_000, 30_000_000),
    "one long name": lambda: (b'{"' + b"a" * 20_000_000, 30_000_000),
    "backslashes": lambda: (b'{"' + b"\\a" * 10_000_000, 30_000_000),
    "metadata in metadata": lambda: (b'{"__metadata__":{"a":' + b'{"a":' * 4_000_000, 30_000_000),
    "a long shape": lambda: (b'{"a":{"dtype":"F32","shape":[' + b"1," * 10_000_000, 30_000_000),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_large_wrong_header_is_refused_fast(kind):
    """In a time that a slow machine needs, and not that of 10,000 times as many steps."""
    text, size = HUGE[kind]()
    began = time.process_time()
    with pytest.raises(CheckpointError):
        parse_header(text, size, "x")
    assert time.process_time() - began < 5
