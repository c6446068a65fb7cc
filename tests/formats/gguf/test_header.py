"""Headers of GGUF files: what gguf-py writes is read; what is damaged is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.errors import CheckpointError
from paramdelta.formats.gguf.header import read_header
from paramdelta.formats.gguf.types import TYPES, UNREADABLE
from paramdelta.storage.local import local_blob
from paramdelta.storage.reader import Reader
from tests import ggufs
from tests.attacks.ggufs import GOOD, KEYS, TENSORS


def header(path):
    """The header of a file."""
    with Reader() as reader:
        return read_header(reader, local_blob(path))


def test_types_are_ggufs():
    """Numbers, names and sizes of blocks are those of the reference; none is missing."""
    constants = pytest.importorskip("gguf.constants")
    theirs = {kind.value: kind.name for kind in constants.GGMLQuantizationType}
    assert {**{n: kind.name for n, kind in TYPES.items()}, **UNREADABLE} == theirs
    sizes = constants.GGML_QUANT_SIZES
    for number, kind in TYPES.items():
        assert (kind.elements, kind.size) == sizes[constants.GGMLQuantizationType(number)]


def test_what_ggufs_own_writer_writes(tmp_path):
    """Metadata of every type, and tensors of which some are quantized."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_int64("a.small", -5)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.flags", [True, False])
    writer.add_token_list(["a", "é", "\u2028"])
    writer.add_token_merges(["a b"])
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    writer.add_tensor("plain", weight)
    blocks = gguf.quants.quantize(np.ones((3, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("codes", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = header(path)
    said = dict(found.metadata)
    assert said["llama.block_count"] == 2
    assert said["a.small"] == -5
    assert said["a.float"] == 0.5
    assert said["a.bool"] is True
    assert list(said["a.numbers"]) == [1, -2, 3]
    assert list(said["a.flags"]) == [1, 0]
    assert said["tokenizer.ggml.tokens"] == ["a", "é", "\u2028"]
    assert said["tokenizer.ggml.merges"] is None
    plain, codes = found.entries
    assert (plain.name, plain.shape, plain.type.name) == ("plain", (2, 3), "F32")
    assert (codes.name, codes.shape, codes.type.name) == ("codes", (3, 64), "Q8_0")
    data = path.read_bytes()
    assert data[plain.offset : plain.offset + plain.size] == weight.tobytes()
    assert data[codes.offset : codes.offset + codes.size] == blocks.tobytes()


def test_a_header_longer_than_one_read(tmp_path):
    """The file is read on as the header goes on; the digest covers the header and no data."""
    tokens = [f"token {number}" for number in range(60_000)]
    keys = {**KEYS, "tokenizer.ggml.tokens": tokens}
    path = ggufs.save(tmp_path / "m.gguf", keys, TENSORS)
    found = header(path)
    assert found.metadata["tokenizer.ggml.tokens"] == tokens
    other = ggufs.save(
        tmp_path / "n.gguf", keys, {**TENSORS, "output_norm.weight": ggufs.plain(np.zeros(4))}
    )
    assert header(other).sha256 == found.sha256
    changed = {**keys, "general.name": "x"}
    assert header(ggufs.save(tmp_path / "o.gguf", changed, TENSORS)).sha256 != found.sha256


def test_another_alignment_and_version(tmp_path):
    """Tensors lie where the alignment of the file puts them; version 2 has the same layout."""
    keys = {"general.alignment": 128, **KEYS}
    path = tmp_path / "m.gguf"
    path.write_bytes(ggufs.encode(keys, TENSORS, version=2))
    for entry in header(path).entries:
        assert entry.offset % 128 == 0
        tensor = TENSORS[entry.name]
        assert path.read_bytes()[entry.offset : entry.offset + entry.size] == tensor.data


def test_strings_that_are_not_utf8_stay_distinct(tmp_path):
    """Two tokens of broken bytes are two tokens."""
    data = ggufs.encode({"tokenizer.ggml.tokens": ["@1", "@2"]}, {})
    path = tmp_path / "m.gguf"
    path.write_bytes(data.replace(b"@1", b"\xe3\x81").replace(b"@2", b"\xe3\x82"))
    first, second = header(path).metadata["tokenizer.ggml.tokens"]
    assert first != second


@given(st.data())
def test_changed_bytes_are_read_or_refused(tmp_path_factory, data):
    """Any bytes changed, cut or put in: a header within the file, or a CheckpointError."""
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        end = min(len(changed), at + data.draw(st.integers(0, 9)))
        changed[at:end] = data.draw(st.binary(max_size=12))
    path = tmp_path_factory.mktemp("f") / "m.gguf"
    path.write_bytes(bytes(changed))
    try:
        found = header(path)
    except CheckpointError:
        return
    for entry in found.entries:
        assert entry.size > 0
        assert entry.offset + entry.size <= len(changed)
