"""Folders of several models: what they consist of."""

import pytest

from paramdelta.errors import CheckpointError
from paramdelta.formats.components import Component, component_of, read_makeup
from tests import opening
from tests.assembled import embedder, modules, pipeline, put
from tests.checkpoints import encode, llama, save


def test_a_plain_folder_is_one_component(tmp_path):
    """Its tensors have no prefix, and a subfolder with weights is not its matter."""
    save(tmp_path / "m", llama())
    put(tmp_path / "m", "2_Dense/model.safetensors", encode(llama()))
    found = opening.checkpoint(tmp_path / "m")
    assert found.components == (Component(),)
    assert found.tensors.keys() == llama().keys()


def test_modules_with_weights_are_components(tmp_path):
    """The names of their tensors begin with their folder; the main model's do not."""
    for main in ("", "0_Transformer"):
        found = opening.checkpoint(embedder(tmp_path / f"m{main}", 1, main=main))
        prefix = f"{main}/" if main else ""
        assert found.components == (Component(prefix), Component("2_Dense/", is_main=False))
        assert set(found.tensors) == {
            *("embeddings.weight", "layer.weight"),
            *("2_Dense/linear.weight", "2_Dense/linear.bias"),
        }
        assert {file.name for file in found.sources} == {
            f"{prefix}model.safetensors",
            "2_Dense/model.safetensors",
        }
        assert found.config["hidden_size"] == 8


def test_routes_are_components(tmp_path):
    """A router has a model for each route, and none at the top."""
    put(tmp_path, "modules.json", modules(main="Router"))
    types = {"query_0_Static": "x.StaticEmbedding", "document_0_T": "x.Transformer"}
    put(tmp_path, "router_config.json", {"types": types, "structure": {}})
    for name in types:
        put(tmp_path, f"{name}/model.safetensors", encode(llama()))
    found = opening.checkpoint(tmp_path)
    assert [c.prefix for c in found.components] == [f"{name}/" for name in types]
    assert found.makeup.main is None


def test_models_of_a_pipeline_are_components(tmp_path):
    """Those with weights; what model_index.json leaves out is left out."""
    found = opening.checkpoint(pipeline(tmp_path / "p", 1))
    stem = "diffusion_pytorch_model"
    assert found.components == (Component("unet/", stem, False), Component("vae/", stem, False))
    assert "unet/conv.in.weight" in found.tensors
    assert found.makeup.inner == ("unet/", "vae/", "scheduler/")


def test_a_component_alone(tmp_path):
    """It keeps the name of its weight file."""
    found = opening.checkpoint(pipeline(tmp_path / "p", 1) / "unet")
    assert found.components == (Component("", "diffusion_pytorch_model"),)


def test_a_component_without_weights_is_refused(tmp_path):
    """A download that was not finished: the place is named."""
    folder = pipeline(tmp_path / "p", 1)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="vae") as error:
        opening.checkpoint(folder)
    assert error.value.code == "no-weights"


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "[1]",
        '[{"path": 1, "type": "x.Transformer"}]',
        '[{"path": "", "type": "T"}, {"path": "../x", "type": "Dense"}]',
        '[{"path": "/etc", "type": "T"}]',
        '[{"path": "a\\\\..\\\\b", "type": "T"}]',
        "[" * 5000,
    ],
)
def test_a_hostile_list_of_modules(tmp_path, content):
    """A list that is none, and paths that leave the folder: refused with the place."""
    put(save(tmp_path / "m", llama()), "modules.json", content)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        opening.checkpoint(tmp_path / "m")


def test_hostile_names_of_components_are_not_followed(tmp_path):
    """Names that lead out of the folder are no components."""
    (tmp_path / "p").mkdir()
    put(tmp_path, "outside/model.safetensors", encode(llama()))
    put(tmp_path / "p", "model_index.json", {"../outside": ["a", "B"], "..": ["a", "B"]})
    makeup = read_makeup(opening.files(tmp_path / "p"))
    assert makeup.inner == ()


def test_a_tensor_belongs_to_the_longest_prefix():
    """A slash in the name of a tensor of the main model means nothing."""
    parts = (Component(), Component("a/", is_main=False), Component("a/b/", is_main=False))
    assert component_of("a/b/c", parts) is parts[2]
    assert component_of("a/c", parts) is parts[1]
    assert component_of("x/c", parts) is parts[0]
