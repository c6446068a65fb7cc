"""What is said of quantized sources: formats, error, and what a Δ from them is worth."""

import json

import numpy as np
import pytest

from paramdelta import Delta, Recipe, plan
from paramdelta.errors import UsageError
from paramdelta.formats.gguf.types import TYPES
from paramdelta.formats.gguf.views import Quantized
from paramdelta.planning.precision import error_of
from tests import ggufs
from tests.checkpoints import bf16, save
from tests.views import Store

SIDE = 64


def quantized(name, values):
    """A view of values that gguf's own quantizer stored, and its fetch."""
    gguf = pytest.importorskip("gguf")
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    kind = next(kind for kind in TYPES.values() if kind.name == name)
    store = Store()
    stored = store.tensor("w", data.reshape(-1), "U8")
    return Quantized("w", "F32", values.shape, stored, kind), store.fetch


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_the_expected_error_is_the_true_one(name):
    """Within a tenth, for weights as networks have them."""
    values = np.random.default_rng(0).normal(0, 0.02, (256, 256)).astype(np.float32)
    view, fetch = quantized(name, values)
    found = view.array(0, values.size, fetch).reshape(values.shape)
    true = np.linalg.norm(found - values) / np.linalg.norm(values)
    assert error_of([view], fetch) == pytest.approx(true, rel=0.1)


def test_numbers_that_are_none():
    """Zeros have no error; blocks with infinite scales say nothing."""
    view, fetch = quantized("Q8_0", np.zeros((2, 64), np.float32))
    assert error_of([view], fetch) == 0
    store = Store()
    kind = TYPES[ggufs.Q8_0]
    infinite = np.tile(np.frombuffer(b"\0\x7c" + b"\1" * 32, np.uint8), 4)
    stored = store.tensor("w", infinite, "U8")
    assert error_of([Quantized("w", "F32", (4, 32), stored, kind)], store.fetch) == 0


@pytest.fixture
def models(tmp_path):
    """A base, a new base, and two GGUF posts: in F32, and with a matrix in Q4_0."""
    gguf = pytest.importorskip("gguf")
    chance = np.random.default_rng(0)
    weight = chance.normal(0, 0.02, (SIDE, SIDE)).astype(np.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    config = {"model_type": "qwen2"}
    for folder, amount in (("base", 0.002), ("new", 0.004)):
        moved = weight + chance.normal(0, amount, weight.shape)
        save(tmp_path / folder, {name: bf16(moved)}, config_json=config)
    codes = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0)
    for file, tensor in {
        "plain": ggufs.plain(weight),
        "q4": ggufs.Tensor(ggufs.Q4_0, weight.shape, codes.tobytes()),
    }.items():
        keys = ggufs.metadata("qwen2", heads=2, key_heads=2)
        ggufs.save(tmp_path / f"{file}.gguf", keys, {"blk.0.ffn_up.weight": tensor})
    return tmp_path


def findings(models, post, base="base"):
    """The findings about precision, by code."""
    made = plan(Recipe(models / "new", (Delta(models / post, models / base),)))
    return {f.code: f for f in made.findings if f.code.startswith("gguf-")}


def test_quantized_sources_are_named(models):
    """Formats, bits per weight, error; and the share of the Δ's energy that it is."""
    found = findings(models, "q4.gguf")
    assert found.keys() == {"gguf-precision", "gguf-noise"}
    assert "1 × Q4_0 tensors; 4.5 bits per weight" in found["gguf-precision"].what
    error = float(found["gguf-precision"].what.split("about ")[1].split(" %")[0])
    assert 7 < error < 11
    share = int(found["gguf-noise"].what.split("about ")[1].split(" %")[0])
    assert 35 < share < 60  # an error of 9 % beside a Δ of 10 %
    assert json.dumps(found["gguf-noise"].to_dict())


def test_plain_gguf_is_not_warned_of(models):
    """F32 has no error."""
    assert findings(models, "plain.gguf") == {}


def test_both_are_quantized(models):
    """Each is named; where they are one file, nothing differs and no share is given."""
    found = findings(models, "q4.gguf", "q4.gguf")
    assert found.keys() == {"gguf-precision"}
    found = findings(models, "plain.gguf", "q4.gguf")
    assert "base" in found["gguf-precision"].where
    assert "gguf-noise" in found


def test_it_cannot_be_the_new_base(models):
    """There would be no config.json, no tokenizer, and the error in every weight."""
    recipe = Recipe(models / "q4.gguf", (Delta(models / "plain.gguf", models / "base"),))
    with pytest.raises(UsageError, match="cannot be the new base") as error:
        plan(recipe)
    assert error.value.code == "gguf-new-base"
