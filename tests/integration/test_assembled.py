"""Mixes of folders of several models: files, numbers, and what their own libraries say."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from paramdelta import Delta, Recipe, Severity, extract, mix, plan, sweep, verify
from paramdelta.checks import check
from paramdelta.errors import Interrupted
from tests.assembled import KINDS, embedder, pipeline, put, weights
from tests.checkpoints import encode, save


def recipe_of(tmp_path, make, **options):
    """A recipe over three folders that ``make(folder, seed)`` writes."""
    paths = {name: str(make(tmp_path / name, seed)) for seed, name in enumerate(KINDS)}
    return Recipe(paths["new"], (Delta(paths["post"], paths["base"]),), **options)


def summed(tmp_path, file):
    """The formula over one file of each folder."""
    new, post, base = (load_file(tmp_path / role / file) for role in ("new", "post", "base"))
    return {name: new[name] + (post[name] - base[name]) for name in new}


def assert_mixed(tmp_path, out, *files):
    """Every tensor of these files is the formula's, under its own name."""
    for file in files:
        found, expected = load_file(out / file), summed(tmp_path, file)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-6)


@pytest.mark.parametrize("main", ["", "0_Transformer/"])
def test_modules_keep_their_files(tmp_path, main):
    """The dense layer is mixed into its own file; verify and check agree."""
    made = recipe_of(tmp_path, lambda p, s: embedder(p, s, main=main.rstrip("/")))
    out = mix(made, tmp_path / "out").folder
    assert_mixed(tmp_path, out, f"{main}model.safetensors", "2_Dense/model.safetensors")
    assert (out / main / "config.json").exists()
    assert json.loads((out / "modules.json").read_text())[2]["path"] == "2_Dense"
    assert verify(out, share=1).notes == ()
    refused = [f for f in check(out).findings if f.severity is Severity.REFUSED]
    assert not [f for f in refused if "2_Dense" in f.where or "modules" in f.where]


@pytest.mark.parametrize("main", ["", "0_Transformer"])
def test_modules_of_post_are_taken(tmp_path, main):
    """A sentence-transformers post onto plain encoders: the layer that only it has comes whole."""
    embedder(tmp_path / "post", 1, main=main)
    for seed, name in ((0, "base"), (2, "new")):
        embedder(tmp_path / name, seed, dense=False)
        (tmp_path / name / "modules.json").unlink()
    recipe = Recipe(str(tmp_path / "new"), (Delta(str(tmp_path / "post"), str(tmp_path / "base")),))
    made = plan(recipe)
    assert "module-taken" in {f.code for f in made.findings}
    assert not made.refused
    out = mix(made, tmp_path / "out").folder
    dense = "2_Dense/model.safetensors"
    got, given = load_file(out / dense), load_file(tmp_path / "post" / dense)
    assert all(np.array_equal(got[name], given[name]) for name in given)
    new, post, base = (
        load_file(tmp_path / each / "model.safetensors")
        for each in ("new", f"post/{main}" if main else "post", "base")
    )
    found = load_file(out / main / "model.safetensors")
    for name, value in new.items():
        np.testing.assert_allclose(found[name], value + (post[name] - base[name]), atol=1e-6)
    assert {"1_Pooling/config.json", "2_Dense/config.json"} <= {c.name for c in made.companions}
    verify(out, share=1)


def test_a_module_that_post_does_not_name_is_refused(tmp_path):
    """The list of modules is post's: weights that it does not name would never be read."""
    recipe = recipe_of(tmp_path, embedder)
    embedder(tmp_path / "third", 1, dense=False)
    put(tmp_path / "third", "modules.json", (tmp_path / "base" / "modules.json").read_text())
    data = json.loads((tmp_path / "third" / "modules.json").read_text())[:2]
    put(tmp_path / "third", "modules.json", data)
    changed = Delta(str(tmp_path / "third"), str(tmp_path / "base"))
    codes = {f.code for f in plan(replace(recipe, deltas=(changed,))).refused}
    assert "module-unnamed" in codes


def test_a_pipeline_keeps_its_folders(tmp_path):
    """Each model is mixed into its own file, at any shard size; the card names diffusers."""
    made = recipe_of(tmp_path, pipeline)
    out = mix(made, tmp_path / "out").folder
    files = [f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vae")]
    assert_mixed(tmp_path, out, *files)
    assert (out / "model_index.json").exists()
    assert not list(out.glob("*.safetensors"))
    assert "library_name: diffusers" in (out / "README.md").read_text()
    verify(out, share=1)


def test_components_have_indexes_of_their_own(tmp_path):
    """A model over the shard size is cut, and its index lies beside its files."""

    def large(folder, seed):
        pipeline(folder, seed)
        tensors = weights(seed, a_weight=(600, 500), b_weight=(600, 500))
        file = "unet/diffusion_pytorch_model.safetensors"
        put(folder, file, encode(tensors, {"format": "pt"}))
        return folder

    out = mix(recipe_of(tmp_path, large), tmp_path / "out", shard_size="1.5MB").folder
    index = json.loads((out / "unet/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        "a.weight": "diffusion_pytorch_model-00001-of-00002.safetensors",
        "b.weight": "diffusion_pytorch_model-00002-of-00002.safetensors",
    }
    assert index["metadata"] == {"total_parameters": 600_000, "total_size": 2_400_000}
    assert (out / "vae/diffusion_pytorch_model.safetensors").exists()
    verify(out, share=1)


def test_a_sweep_of_a_pipeline(tmp_path):
    """Each scale is a pipeline; a member is what a mix at its scale writes."""
    made = recipe_of(tmp_path, pipeline)
    swept = sweep(made, [0, 1], tmp_path / "sweep")
    out = mix(made, tmp_path / "out").folder
    file = "vae/diffusion_pytorch_model.safetensors"
    assert (swept.members[1].folder / file).read_bytes() == (out / file).read_bytes()
    zero, new = load_file(swept.members[0].folder / file), load_file(tmp_path / "new" / file)
    assert all(np.array_equal(zero[name], new[name]) for name in new)
    assert all(member.size > 0 for member in swept.members)


def test_a_stored_delta_of_a_pipeline(tmp_path):
    """Extracted and applied, it gives the bytes of the mix; check says what it is."""
    made = recipe_of(tmp_path, pipeline)
    extract((str(tmp_path / "post"), str(tmp_path / "base")), tmp_path / "delta")
    stored = Recipe(str(tmp_path / "new"), (Delta(delta=str(tmp_path / "delta")),))
    out, again = mix(made, tmp_path / "out").folder, mix(stored, tmp_path / "again").folder
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (out / file).read_bytes() == (again / file).read_bytes()
    verify(tmp_path / "delta", share=1)
    assert check(tmp_path / "delta").kind == "delta"


@pytest.mark.parametrize(("post", "expected"), [("epsilon", "v_prediction"), ("sample", "sample")])
def test_a_scheduler_is_posts_if_post_training_changed_it(tmp_path, post, expected):
    """The new base's stays where post has that of base."""
    made = recipe_of(tmp_path, pipeline)
    name = "scheduler/scheduler_config.json"
    put(tmp_path / "new", name, {"prediction_type": "v_prediction"})
    put(tmp_path / "post", name, {"prediction_type": post})
    out = mix(made, tmp_path / "out").folder
    assert json.loads((out / name).read_text())["prediction_type"] == expected


def test_a_pipeline_and_one_model(tmp_path):
    """Refused, with the folders that may have been meant."""
    made = recipe_of(tmp_path, pipeline)
    alone = replace(made, new_base=f"{tmp_path}/new/unet")
    finding = next(f for f in plan(alone).refused if f.code == "pipeline-misfit")
    assert "/unet" in str(finding.remedy)


def test_a_component_alone_keeps_its_file_name(tmp_path):
    """`unet/` given alone comes out as diffusers reads it."""
    made = recipe_of(tmp_path, lambda p, s: pipeline(p, s) / "unet")
    out = mix(made, tmp_path / "out").folder
    assert (out / "diffusion_pytorch_model.safetensors").exists()
    assert not (out / "model.safetensors").exists()


def test_components_whose_configurations_differ(tmp_path):
    """A key of unet/config.json that gives weights another meaning is refused, with its place."""
    made = recipe_of(tmp_path, pipeline)
    config = {"_class_name": "unet", "sample_size": 16, "attention_head_dim": 4}
    put(tmp_path / "new", "unet/config.json", config)
    put(tmp_path / "post", "unet/config.json", config | {"attention_head_dim": 8})
    (finding,) = plan(made).refused
    assert "attention_head_dim" in finding.what
    assert "/unet" in finding.where


def test_a_dtype_is_written_into_every_configuration(tmp_path):
    """The configuration of each component states the dtype of its own weights."""
    made = recipe_of(tmp_path, pipeline, dtype="BF16")
    config = {"model_type": "clip", "dtype": "float32", "_name_or_path": "/home/x"}
    for name in KINDS:
        put(tmp_path / name, "unet/config.json", config)
    out = mix(made, tmp_path / "out").folder
    assert json.loads((out / "unet/config.json").read_text()) == {
        "model_type": "clip",
        "dtype": "bfloat16",
    }


def test_a_killed_mix_of_a_pipeline_goes_on(tmp_path):
    """Files in subfolders are resumed as others are, and end in the same bytes."""
    made = recipe_of(tmp_path, pipeline)
    whole = mix(made, tmp_path / "whole").folder

    def stop(now):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="stopped"):
        mix(made, tmp_path / "out", progress=stop)
    out = mix(made, tmp_path / "out").folder
    for path in whole.rglob("*.safetensors"):
        assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes()


def test_the_dtypes_of_components_are_their_own(tmp_path):
    """A dense layer in F32 beside an encoder in BF16: config.json still states the encoder's."""
    from tests.checkpoints import bf16

    def half(folder, seed):
        embedder(folder, seed)
        layers = {"layer.weight": bf16(np.ones((8, 8)) * seed)}
        save(folder, layers, config_json={"model_type": "bert", "dtype": "float32"})
        return folder

    out = mix(recipe_of(tmp_path, half), tmp_path / "out").folder
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_pipeline_with_another_vocabulary(tmp_path):
    """Rows are mixed by number there, so the tokenizers must agree; it can be allowed."""
    made = recipe_of(tmp_path, pipeline)
    for role in KINDS:
        index = json.loads((tmp_path / role / "model_index.json").read_text())
        put(tmp_path / role, "model_index.json", {**index, "tokenizer": ["transformers", "T"]})
        words = {"a": 0, "b": 1} if role != "post" else {"b": 0, "a": 1}
        put(tmp_path / role, "tokenizer/tokenizer.json", {"model": {"type": "BPE", "vocab": words}})
    assert {f.code for f in plan(made).refused} == {"component-vocabulary"}
    assert not plan(replace(made, allow=("component-vocabulary",))).refused


def test_routes_are_mixed(tmp_path):
    """Each route of a router has its own model, and keeps its folder."""

    def router(folder, seed):
        put(folder, "modules.json", [{"idx": 0, "name": "0", "path": "", "type": "x.Router"}])
        types = {"query_0_Static": "x.StaticEmbedding", "document_0_Dense": "x.Dense"}
        put(folder, "router_config.json", {"types": types, "structure": {}})
        for number, name in enumerate(types):
            tensors = weights(10 * seed + number, embedding_weight=(16, 8))
            put(folder, f"{name}/model.safetensors", encode(tensors, {"format": "pt"}))
        return folder

    out = mix(recipe_of(tmp_path, router), tmp_path / "out").folder
    assert_mixed(
        tmp_path, out, "query_0_Static/model.safetensors", "document_0_Dense/model.safetensors"
    )
    assert (out / "router_config.json").exists()
    verify(out, share=1)
