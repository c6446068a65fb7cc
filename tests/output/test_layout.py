"""Shards, headers and index."""

import json
from pathlib import Path

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta import UsageError, mix
from paramdelta.formats.safetensors import parse_header
from paramdelta.formats.view import Tensor
from paramdelta.output.layout import make_header, make_layout
from paramdelta.planning.plan import OutputTensor, Plan


def planned(sizes):
    """A plan of F32 vectors of these sizes."""
    tensors = tuple(
        OutputTensor(f"tensor.{i}", "F32", (n,), Tensor("", "F32", (n,), Path(), 0, 4 * n))
        for i, n in enumerate(sizes)
    )
    return Plan(None, None, (), tensors, (), ())


@given(st.lists(st.integers(0, 600_000), min_size=1, max_size=30), st.integers(10**6, 5 * 10**6))
@settings(max_examples=60)
def test_shards_keep_to_their_size(sizes, most):
    """No file is larger than asked for unless one tensor alone is; nothing is left out."""
    plan = planned(sizes)
    layout = make_layout(plan, most)
    covered = [n for s in layout.shards for n in range(s.first, s.last)]
    assert covered == list(range(len(sizes)))
    for shard in layout.shards:
        assert shard.size <= most or shard.last - shard.first == 1
        data = sum(t.nbytes for t in plan.tensors[shard.first : shard.last])
        entries, metadata = parse_header(shard.header[8:], shard.size, "file")
        assert metadata == {"format": "pt"}
        assert len(shard.header) % 8 == 0
        assert sum(e.nbytes for e in entries) == data
    assert (layout.index is None) == (len(layout.shards) == 1)


def test_a_shard_size_in_bytes_is_refused():
    """A size that was meant in megabytes is a usage error."""
    with pytest.raises(UsageError, match="too little"):
        make_layout(planned([10]), 5000)


def test_names_of_any_kind_survive():
    """Quotes, spaces and other alphabets in names are written as JSON wants them."""
    tensor = Tensor("", "F32", (1,), Path(), 0, 4)
    names = ['a "quoted" name', "Δ.weight", "back\\slash"]
    header = make_header([OutputTensor(n, "F32", (1,), tensor) for n in names])
    assert list(json.loads(header[8:]))[1:] == names


def test_many_shards_load_with_the_reference_reader(lineage, tmp_path):
    """A mix cut at 1 MB: safetensors reads each file, the index names each tensor."""
    from tests.checkpoints import llama, moved, save

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
