"""Shards, offsets, headers and index."""

import json

import pytest
import safetensors
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paramdelta import UsageError, mix
from paramdelta.encodings.encoding import Stream
from paramdelta.formats.safetensors import parse_header
from paramdelta.output.layout import make_header, make_layout
from tests.checkpoints import llama, moved, save


def streams(sizes):
    """F32 vectors of these sizes."""
    return [Stream(f"tensor.{i}", "F32", (n,)) for i, n in enumerate(sizes)]


@given(
    st.lists(st.integers(0, 600_000), min_size=1, max_size=30),
    st.integers(10**6, 5 * 10**6),
    st.one_of(st.none(), st.integers(0, 31)),
)
@example([10, 10, 10], 10**6, 1)
@settings(max_examples=60)
def test_shards_keep_to_their_size(sizes, most, apart):
    """No file is larger than asked for unless one tensor alone is; nothing is left out; a tensor
    that starts a file does.
    """
    made = streams(sizes)
    layout = make_layout(made, sum(sizes), most, apart)
    covered = [n for s in layout.shards for n in range(s.first, s.last)]
    assert covered == list(range(len(sizes)))
    for shard in layout.shards:
        assert shard.size <= most or shard.last - shard.first == 1
        data = sum(stream.nbytes for stream in made[shard.first : shard.last])
        entries, metadata = parse_header(shard.header[8:], shard.size, "file")
        assert metadata == {"format": "pt"}
        assert len(shard.header) % 8 == 0
        assert sum(e.nbytes for e in entries) == data == shard.size - len(shard.header)
    assert (not layout.indexes) == (len(layout.shards) == 1)
    if apart is not None and 0 < apart < len(sizes):
        assert apart in {shard.first for shard in layout.shards}
    assert layout.size == sum(shard.size for shard in layout.shards)
    assert layout.nbytes == 4 * sum(sizes)


@given(st.lists(st.integers(0, 600_000), min_size=1, max_size=20))
@settings(max_examples=30)
def test_places_are_where_the_headers_say(sizes):
    """Every tensor's file and offset agree with the file's header; positions follow each other."""
    layout = make_layout(streams(sizes), sum(sizes), 10**6)
    position = 0
    for stream, place in zip(layout.streams, layout.places, strict=True):
        shard = layout.shards[place.shard]
        entries, _ = parse_header(shard.header[8:], shard.size, "file")
        (entry,) = (entry for entry in entries if entry.name == stream.name)
        assert place.offset == entry.offset
        assert place.position == position
        position += stream.nbytes


def test_a_shard_size_in_bytes_is_refused():
    """A size that was meant in megabytes is a usage error."""
    with pytest.raises(UsageError, match="too little"):
        make_layout(streams([10]), 10, 5000)


def test_names_of_any_kind_survive():
    """Quotes, spaces and other alphabets in names are written as JSON wants them."""
    names = ['a "quoted" name', "Δ.weight", "back\\slash"]
    header = make_header([Stream(name, "F32", (1,)) for name in names])
    assert list(json.loads(header[8:]))[1:] == names


def test_many_shards_load_with_the_reference_reader(lineage, tmp_path):
    """A mix cut at 1 MB: safetensors reads each file, the index names each tensor."""
    base = llama(hidden=128, layers=3, vocab=500)
    for name, tensors in (("post", moved(base, 1)), ("base", base), ("new", moved(base, 2))):
        folder = getattr(lineage, name)
        for old in folder.glob("model*"):
            old.unlink()
        save(folder, tensors)
    result = mix(lineage.recipe(), tmp_path / "out", shard_size="1MB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(result.layout.shards) > 1
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in base.values())
    assert index["metadata"]["total_parameters"] == sum(v.size for v in base.values())
    found = {}
    for shard in set(index["weight_map"].values()):
        assert (tmp_path / "out" / shard).stat().st_size <= 1_000_000
        with safetensors.safe_open(tmp_path / "out" / shard, "np") as file:
            found |= dict.fromkeys(file.keys(), shard)
    assert found == index["weight_map"]


def test_files_hold_neighbors_and_wider_elements_come_first():
    """Numbers and scales of one tensor lie in one file, each aligned to its element."""
    made = []
    for number in range(8):
        made += [
            Stream(f"{number}.weight", "F8_E4M3", (300_001,)),
            Stream(f"{number}.scale", "F32", (7,)),
        ]
    layout = make_layout(made, 8 * 300_008, 10**6)
    assert len(layout.shards) > 2
    for number in range(8):
        weight, scale = layout.places[2 * number : 2 * number + 2]
        assert weight.shard == scale.shard
        assert scale.offset % 4 == 0
        assert scale.offset < weight.offset
