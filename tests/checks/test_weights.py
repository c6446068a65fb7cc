"""Which weight files a loader reads, and faults of index and files."""

import json

import numpy as np
import pytest

from paramdelta.checks.folder import open_folder
from paramdelta.checks.weights import read_weights
from paramdelta.planning.findings import Findings
from tests.checkpoints import encode
from tests.checks.folders import edit, put, right, sharded, tensors

INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-{n:05d}-of-00002.safetensors" for n in (1, 2))


def read(folder, stem="model", explicit=None):
    """The weights, and codes and places of what is found."""
    findings = Findings()
    weights = read_weights(open_folder(folder, findings), stem, findings, explicit)
    return weights, {(f.code, f.where) for f in findings.all(())}


def test_one_file(tmp_path):
    """Shapes, dtypes and bytes are those of the file."""
    weights, found = read(right(tmp_path))
    assert found == set()
    assert weights.files == ("model.safetensors",)
    state = tensors()
    assert weights.tensors.keys() == state.keys()
    data = (tmp_path / "model.safetensors").read_bytes()
    for name, stored in weights.tensors.items():
        assert (stored.dtype, stored.shape) == ("BF16", state[name].shape)
        assert data[stored.offset : stored.offset + stored.nbytes] == state[name].tobytes()


def test_shards(tmp_path):
    """All tensors of all shards."""
    weights, found = read(sharded(tmp_path))
    assert found == set()
    assert weights.tensors.keys() == tensors().keys()
    assert weights.files == (FIRST, SECOND)


def _lose_shard(folder):
    (folder / SECOND).unlink()


def _lose_index(folder):
    (folder / INDEX).unlink()


def _keep_whole_file(folder):
    put(folder, "model.safetensors", tensors())


def _keep_other_shard(folder):
    put(folder, "model-00003-of-00003.safetensors", {"x": np.ones(1, np.float32)})


def _leave_folder(folder):
    edit(folder, INDEX, weight_map={"a": "../x.safetensors"})


def _name_absent_tensor(folder):
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder, INDEX, weight_map=weight_map | {"absent": FIRST})


def _leave_tensor_out(folder):
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    weight_map.pop("lm_head.weight")
    edit(folder, INDEX, weight_map=weight_map)


def _hold_one_twice(folder):
    state = tensors()
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    for shard in (FIRST, SECOND):
        names = [n for n in state if weight_map[n] == shard or n == "model.norm.weight"]
        put(folder, shard, {name: state[name] for name in names})


def _without_map(folder):
    put(folder, INDEX, {"weight_map": ["a"]})


@pytest.mark.parametrize(
    ("breaks", "code", "where"),
    [
        (_lose_shard, "shard-missing", INDEX),
        (_lose_index, "index-missing", FIRST),
        (_keep_whole_file, "two-weight-sets", INDEX),
        (_keep_other_shard, "stray-weights", "model-00003-of-00003.safetensors"),
        (_leave_folder, "path-outside", INDEX),
        (_name_absent_tensor, "index-wrong", INDEX),
        (_leave_tensor_out, "index-incomplete", INDEX),
        (_hold_one_twice, "tensor-twice", SECOND),
        (_without_map, "index-invalid", INDEX),
    ],
)
def test_faults_of_an_index(tmp_path, breaks, code, where):
    """Each is found where it is."""
    breaks(sharded(tmp_path))
    assert (code, where) in read(tmp_path)[1]


def test_explicit_file(tmp_path):
    """What transformers_weights names is read, and nothing else; it must be there."""
    right(tmp_path)
    put(tmp_path, "other.safetensors", {"x": np.ones(1, np.float32)})
    weights, _ = read(tmp_path, explicit="other.safetensors")
    assert list(weights.tensors) == ["x"]
    assert ("file-missing", "config.json") in read(tmp_path, explicit="../up.safetensors")[1]


def test_metadata_of_another_framework(tmp_path):
    """transformers 4 wants format: pt where there are metadata at all."""
    put(tmp_path, "model.safetensors", encode(tensors(), {"made": "by hand"}))
    assert read(tmp_path)[1] == {("metadata-format", "model.safetensors")}
    put(tmp_path, "model.safetensors", encode(tensors()))
    assert read(tmp_path)[1] == set()


def test_pickles(tmp_path):
    """Alone they are weights that nobody opens here; beside safetensors they are strays."""
    put(tmp_path, "pytorch_model.bin", b"PK")
    put(tmp_path, "optimizer.pt", b"PK")
    weights, found = read(tmp_path)
    assert weights.pickled == ("pytorch_model.bin",)
    assert found == {("pickled-weights", "pytorch_model.bin"), ("training-state", "optimizer.pt")}
    put(right(tmp_path), "sparse_linear.pt", b"PK")
    weights, found = read(tmp_path)
    assert weights.pickled == ()
    assert ("stray-weights", "pytorch_model.bin") in found
    assert ("side-weights", "sparse_linear.pt") in found


def test_weights_of_diffusers(tmp_path):
    """Another stem, and variants beside it."""
    state = {"conv.weight": np.ones((2, 2), np.float32)}
    put(tmp_path, "diffusion_pytorch_model.safetensors", state)
    put(tmp_path, "diffusion_pytorch_model.fp16.safetensors", state)
    weights, found = read(tmp_path, "diffusion_pytorch_model")
    assert (weights.files, found) == (("diffusion_pytorch_model.safetensors",), set())
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    weights, found = read(tmp_path, "diffusion_pytorch_model")
    assert weights.files == ("diffusion_pytorch_model.fp16.safetensors",)


def test_weights_of_other_runtimes(tmp_path):
    """They are named where there is nothing else, and ignored beside safetensors."""
    put(tmp_path, "model.gguf", b"GGUF")
    assert read(tmp_path)[1] == {("other-format", "model.gguf")}
    assert read(right(tmp_path))[1] == set()
