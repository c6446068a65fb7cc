"""GGUF files as checkpoints: one file, a folder with one, the parts of one."""

import json

import numpy as np
import pytest

from paramdelta.errors import CheckpointError
from tests import ggufs, opening
from tests.attacks.ggufs import GOOD, KEYS, TENSORS

NAMES = {
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.norm.weight",
}


def put(folder, **files):
    """A folder of files; ``__`` stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def parts(folder, count=2):
    """The tensors in parts, as llama-gguf-split writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(TENSORS)
    for number in range(count):
        said = {"split.no": number, "split.count": count, "split.tensors.count": len(TENSORS)}
        keys = {**KEYS, **said} if number == 0 else said
        data = ggufs.encode(keys, {name: TENSORS[name] for name in names[number::count]})
        (folder / f"m-{number + 1:05d}-of-{count:05d}.gguf").write_bytes(data)
    return folder


def numbers(checkpoint):
    """Every tensor's bytes."""
    return {
        name: view.array(0, view.elements, opening.fetch).tobytes()
        for name, view in checkpoint.tensors.items()
    }


def test_a_file_a_folder_and_parts_agree(tmp_path):
    """However it is given, the same tensors; also without a suffix, as ollama keeps files."""
    alone = opening.checkpoint(put(tmp_path / "a", model__gguf=GOOD) / "model.gguf")
    assert alone.tensors.keys() == NAMES
    assert alone.is_bare
    places = (
        tmp_path / "a",
        put(tmp_path / "b", blob=GOOD) / "blob",
        parts(tmp_path / "c"),
        parts(tmp_path / "d", 4),
    )
    for place in places:
        found = opening.checkpoint(place)
        assert numbers(found) == numbers(alone)
        assert found.config == alone.config
    assert len(opening.checkpoint(tmp_path / "d").sources) == 4


def test_other_names(tmp_path):
    """Named as a pickle it is read all the same; named safetensors it is refused."""
    found = opening.checkpoint(put(tmp_path / "a", pytorch_model__bin=GOOD))
    assert found.tensors.keys() == NAMES
    assert found.is_bare
    with pytest.raises(CheckpointError, match="name of another format"):
        opening.checkpoint(put(tmp_path / "b", model__safetensors=GOOD))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    with pytest.raises(CheckpointError, match="LFS"):
        opening.checkpoint(put(tmp_path / "c", model__gguf=pointer))


def test_what_the_metadata_states_stands_for_absent_files(tmp_path):
    """Config, roles and tokens; a file that is there counts, and nothing new is listed."""
    folder = put(tmp_path / "a", model__gguf=GOOD)
    found = opening.checkpoint(folder)
    assert found.config["num_attention_heads"] == 2
    assert found.config["tie_word_embeddings"] is True
    assert found.read_json("tokenizer_config.json")["eos_token"] == "<|end|>"
    assert set(found.files) == {"model.gguf"}
    put(folder, config__json=json.dumps({"model_type": "mistral"}).encode())
    assert opening.checkpoint(folder).config == {"model_type": "mistral"}


def test_safetensors_come_first(tmp_path):
    """GGUF files beside a checkpoint are not looked at."""
    from tests.checkpoints import llama, save

    folder = save(tmp_path / "m", llama())
    put(folder, model__gguf=GOOD, other__gguf=b"")
    assert not opening.checkpoint(folder).is_bare


@pytest.mark.parametrize("names", [("q4.gguf", "q8.gguf"), ("m-00001-of-00002.gguf", "n.gguf")])
def test_several_files_are_refused(tmp_path, names):
    """Which one is meant must be said."""
    for name in names:
        (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(CheckpointError, match="cannot tell which") as error:
        opening.checkpoint(tmp_path)
    assert "name one file" in error.value.remedy


def test_parts_that_are_missing_or_mixed_up(tmp_path):
    """A part alone, without its folder; a folder without one; parts in each other's place."""
    folder = parts(tmp_path / "a", 3)
    with pytest.raises(CheckpointError, match="is a part") as error:
        opening.checkpoint(folder / "m-00001-of-00003.gguf")
    assert error.value.code == "gguf-parts"
    _, second, third = sorted(folder.iterdir())
    held = second.read_bytes()
    second.write_bytes(third.read_bytes())
    third.write_bytes(held)
    with pytest.raises(CheckpointError, match="not the part"):
        opening.checkpoint(folder)
    second.unlink()
    with pytest.raises(CheckpointError, match="cannot tell which"):
        opening.checkpoint(folder)


def test_parts_that_repeat_or_lack_a_tensor(tmp_path):
    """One tensor in two parts; fewer tensors than the first part says."""
    folder = parts(tmp_path / "a")
    second = folder / "m-00002-of-00002.gguf"
    said = {"split.no": 1, "split.count": 2}
    repeated = {name: TENSORS[name] for name in ("token_embd.weight", "output_norm.weight")}
    second.write_bytes(ggufs.encode(said, repeated))
    with pytest.raises(CheckpointError, match="in two files"):
        opening.checkpoint(folder)
    second.write_bytes(ggufs.encode(said, {"output_norm.weight": ggufs.plain(np.ones(4))}))
    with pytest.raises(CheckpointError, match="all tensors"):
        opening.checkpoint(folder)
