"""Layers for multi-token prediction, which some of the checkpoints lack."""

import json

import pytest

from paramdelta import Delta, Recipe, Severity, mix, plan
from paramdelta.planning.predictors import is_predictor, stated_layers
from tests.checkpoints import llama, moved, save
from tests.planning.test_plan import codes

CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "num_nextn_predict_layers": 1}


def recipe(tmp_path, **layers):
    """Three models of so many layers; the third layer predicts further tokens."""
    base = llama(layers=3)
    folders = {}
    for seed, (role, count) in enumerate(layers.items()):
        tensors = {n: v for n, v in moved(base, seed).items() if f"layers.{count}." not in n}
        folders[role] = str(save(tmp_path / role, tensors, config_json=CONFIG))
    return Recipe(folders["new"], (Delta(folders["post"], folders["base"]),))


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        (CONFIG, "model.layers.2.mlp.up_proj.weight", True),
        (CONFIG, "model.layers.1.mlp.up_proj.weight", False),
        (CONFIG, "model.embed_tokens.weight", False),
        ({"text_config": CONFIG}, "model.layers.2.eh_proj.weight", True),
        ({"mtp_num_hidden_layers": 1}, "mtp.layers.0.mlp.up_proj.weight", True),
        ({}, "mtp.layers.0.mlp.up_proj.weight", False),
        (CONFIG | {"num_nextn_predict_layers": 0}, "model.layers.2.mlp.up_proj.weight", False),
    ],
)
def test_which_layers_predict(config, name, expected):
    """By name, or by a number beyond the last layer; only if config.json states such layers."""
    assert is_predictor(name, config) is expected


def test_where_they_are_stated():
    """At the top or in the text part; zero states none."""
    assert stated_layers(CONFIG) == [("num_nextn_predict_layers",)]
    assert stated_layers({"text_config": {"num_mtp_layers": 2}}) == [
        ("text_config", "num_mtp_layers")
    ]
    assert stated_layers({"num_mtp_layers": 0}) == []


def test_a_new_base_without_them(tmp_path):
    """Post's are left out with a warning, and the output's config.json promises none."""
    made = recipe(tmp_path, base=3, post=3, new=2)
    assert set(codes(plan(made)).values()) <= {Severity.WARNING, Severity.NOTE}
    mix(made, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 0


def test_a_post_without_them(tmp_path):
    """The new base's stay as they are, with a warning, and config.json keeps its word."""
    made = recipe(tmp_path, base=3, post=2, new=3)
    assert codes(plan(made))["predictor-without-delta"] is Severity.WARNING
    mix(made, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 1
