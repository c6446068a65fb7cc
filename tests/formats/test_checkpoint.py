"""Opening folders and files as users have them."""

import json
import os
import shutil

import numpy as np
import pytest

from paramdelta.errors import CheckpointError, StorageError, UsageError
from paramdelta.formats.checkpoint import INDEX
from tests import opening
from tests.checkpoints import encode, llama, save


def test_one_file_many_shards_and_a_lone_file_agree(tmp_path):
    """However it is cut, the same tensors are found."""
    tensors = llama()
    one = opening.checkpoint(save(tmp_path / "one", tensors), "base")
    many = opening.checkpoint(save(tmp_path / "many", tensors, shards=3), "base")
    lone = opening.checkpoint(tmp_path / "one" / "model.safetensors", "base")
    for other in (many, lone):
        assert {n: (t.dtype, t.shape) for n, t in other.tensors.items()} == {
            n: (t.dtype, t.shape) for n, t in one.tensors.items()
        }
    assert one.parameters == sum(v.size for v in tensors.values())
    assert not lone.files


def test_hub_cache_links_work(tmp_path):
    """The Hub's cache holds links out of the snapshot to its blobs: that is normal."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "123").write_bytes(encode(llama()))
    os.symlink("../../blobs/123", snapshot / "model.safetensors")
    assert len(opening.checkpoint(snapshot, "base").tensors) == len(llama())


def test_shards_without_index_are_found_if_complete(tmp_path):
    """All shards there: the lost index is no matter."""
    folder = save(tmp_path / "m", llama(), shards=3)
    (folder / "model.safetensors.index.json").unlink()
    assert len(opening.checkpoint(folder, "base").tensors) == len(llama())


def test_another_name_is_found_if_alone(tmp_path):
    """A single file of another name in a folder is the checkpoint."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights.safetensors").write_bytes(encode(llama()))
    assert opening.checkpoint(tmp_path / "adapter", "base").tensors


def test_metadata_and_empty_tensors(tmp_path):
    """A tensor without elements and a scalar are tensors too."""
    tensors = {"none": np.ones((0, 4), np.float32), "scalar": np.float32(3).reshape(())}
    found = opening.checkpoint(save(tmp_path / "m", tensors), "base").tensors
    assert found["none"].elements == 0
    assert found["scalar"].shape == ()


def test_absent_addresses_are_usage_errors(tmp_path):
    """No folder, no Hub id, and an address that cannot be read yet."""
    for address in (str(tmp_path / "absent"), "a/b/c", "./absent", "ftp://host/model"):
        with pytest.raises(UsageError):
            opening.checkpoint(address, "post")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    """A file without read permission is an I/O error with its name."""
    folder = save(tmp_path / "m", llama())
    (folder / "model.safetensors").chmod(0)
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        opening.checkpoint(folder, "post")


def test_a_folder_in_place_of_a_file(tmp_path):
    """A folder named model.safetensors is no weight file."""
    (tmp_path / "m" / "model.safetensors").mkdir(parents=True)
    with pytest.raises((CheckpointError, StorageError)):
        opening.checkpoint(tmp_path / "m", "post")
    shutil.rmtree(tmp_path / "m")


@pytest.mark.parametrize(
    ("files", "what", "remedy"),
    [
        (
            ["checkpoint-500/model.safetensors", "trainer_state.json"],
            "no weights",
            "checkpoint-500",
        ),
        (["unet/diffusion_pytorch_model.safetensors"], "no weights", "unet"),
        (["global_step9/zero_pp_rank_0_mp_rank_00_model_states.pt"], "training", "zero_to_fp32"),
        (["optimizer.pt", "training_args.bin"], "training", "save the model"),
        (["consolidated.00.pth", "consolidated.01.pth"], "Meta's own format", "transformers"),
        (["model-00001-of-00002.safetensors"], "cannot tell", "finish the download"),
        (["__0_0.distcp"], "distributed", "dcp_to_torch"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, files, what, remedy):
    """Folders of runs, training states and parts of pipelines: what it is, and what to do."""
    for name in files:
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_bytes(encode(llama()))
    with pytest.raises(CheckpointError, match=what) as error:
        opening.checkpoint(tmp_path / "m")
    assert remedy in str(error.value.remedy)


def test_a_recipe_is_no_checkpoint(tmp_path):
    """A mergekit configuration in the place of a checkpoint: the command that reads it is named."""
    (tmp_path / "merge.yml").write_text("merge_method: linear\n")
    with pytest.raises(UsageError, match="YAML") as error:
        opening.checkpoint(tmp_path / "merge.yml")
    assert "recipe import" in str(error.value.remedy)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("model.fp16.safetensors", "model"),
        ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model"),
        ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model"),
        ("consolidated.safetensors", "model"),
    ],
)
def test_lone_files_of_other_names(tmp_path, name, stem):
    """A variant alone is the checkpoint; the output gets the name that its loader looks for."""
    (tmp_path / name).write_bytes(encode(llama()))
    (component,) = opening.checkpoint(tmp_path).components
    assert component.stem == stem


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    """The name of a weight file in this folder, which is not there."""
    monkeypatch.chdir(tmp_path)
    for name in ("model.safetensors", "post.gguf", "recipe.yaml", ".hidden"):
        with pytest.raises(UsageError, match="no such checkpoint"):
            opening.checkpoint(name)


def test_a_constant_that_only_the_index_names(tmp_path):
    """Older versions of transformers listed rotary frequencies that they did not save."""
    folder = save(tmp_path / "m", llama(), shards=2)
    path = folder / INDEX
    index = json.loads(path.read_text())
    shard = next(iter(index["weight_map"].values()))
    constant = "model.layers.0.self_attn.rotary_emb.inv_freq"
    index["weight_map"][constant] = shard
    path.write_text(json.dumps(index))
    assert opening.checkpoint(folder).ignored == (f"{constant} (in the index only)",)
    index["weight_map"]["model.layers.0.mlp.extra.weight"] = shard
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="in no shard"):
        opening.checkpoint(folder)
