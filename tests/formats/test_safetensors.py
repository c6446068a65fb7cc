"""The header parser, on good files, on the reference writer's, and on noise."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta.dtypes import DTYPES
from paramdelta.errors import CheckpointError
from paramdelta.formats.safetensors import header_length, parse_header


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
