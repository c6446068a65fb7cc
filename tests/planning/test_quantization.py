"""What the dtype fp8-block plans: which tensors, beside which scales, and what config.json says."""

import numpy as np
import pytest

from paramdelta import CheckpointError, Delta, Recipe, UsageError, plan
from paramdelta.encodings.fp8_blocks import quantization_config
from tests.checkpoints import bf16, fp8, save

CONFIG = {
    "model_type": "deepseek_v3",
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}
NORM = {"norm.weight": bf16(np.ones(8))}


def recipe(folder, new, post=None, base=None, config=CONFIG, **choices):
    """Three checkpoints of one config, and the recipe for them."""
    sets = {"new": new, "post": post or new, "base": base or new}
    paths = {role: str(save(folder / role, t, config_json=config)) for role, t in sets.items()}
    choices = {"dtype": "fp8-block"} | choices
    return Recipe(paths["new"], (Delta(paths["post"], paths["base"]),), **choices)


def planned(folder, *sets, **choices):
    """The plan, the tensors of its weight files by name, and the changes of config.json."""
    made = plan(recipe(folder, *sets, **choices))
    config = next(c for c in made.companions if c.name == "config.json")
    streams = {stream.name: stream for tensor in made.tensors for stream in tensor.streams}
    return made, streams, dict(config.changes)


def test_what_is_fp8_in_the_new_base_is_fp8(tmp_path):
    """FP8 weights come out so, with a scale a block; everything else keeps its dtype."""
    new = fp8(0, a=(300, 200), b=(1, 128)) | NORM
    made, streams, changes = planned(tmp_path, new, fp8(1, a=(300, 200), b=(1, 128)) | NORM)
    assert {name: (t.dtype, t.shape) for name, t in streams.items()} == {
        "a.weight": ("F8_E4M3", (300, 200)),
        "a.weight_scale_inv": ("F32", (3, 2)),
        "b.weight": ("F8_E4M3", (1, 128)),
        "b.weight_scale_inv": ("F32", (1, 1)),
        "norm.weight": ("BF16", (8,)),
    }
    assert changes == {}  # it is of this form already
    assert made.parameters == 300 * 200 + 128 + 8
    assert (made.mixed, made.copied) == (3, 0)
    assert made.bytes_to_write == sum(value.nbytes for value in new.values())
    found = next(f for f in made.findings if f.code == "requantized")
    assert set(found.tensors) == {"a.weight", "b.weight"}


def test_others_are_fp8_where_the_new_base_is(tmp_path):
    """A weight that only post and base have in FP8 keeps the new base's dtype."""
    plain = {"a.weight": bf16(np.ones((200, 130)))} | fp8(0, b=(9, 9))
    scaled = fp8(1, a=(200, 130), b=(9, 9))
    _, streams, _ = planned(tmp_path, plain, scaled, scaled)
    assert streams["a.weight"].dtype == "BF16"
    assert "a.weight_scale_inv" not in streams
    assert streams["b.weight"].dtype == "F8_E4M3"


@pytest.mark.parametrize("shape", [(200, 1), (200,), (1,), ()])
def test_scales_of_rows_and_tensors_become_scales_of_blocks(tmp_path, shape):
    """compressed-tensors' form gives way to DeepSeek's, and the plan says so."""
    codes = fp8(0, a=(200, 300))["a.weight"]
    new = {"a.weight": codes, "a.weight_scale": np.full(shape, 1e-3, np.float32)}
    new |= {"lm_head.weight": bf16(np.ones((4, 4)))}
    quantization = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    config = CONFIG | {"quantization_config": quantization}
    _, streams, changes = planned(tmp_path, new, new, new, config)
    assert streams["a.weight_scale_inv"].shape == (2, 3)
    assert "a.weight_scale" not in streams
    assert changes == {
        "quantization_config": CONFIG["quantization_config"]
        | {"modules_to_not_convert": ["lm_head"]}
    }


def test_own_keys_of_the_form_are_kept():
    """Which modules are left out is kept; scales that are powers of two are no longer promised."""
    own = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head"], "scale_fmt": "ue8m0"}
    found = quantization_config({"quantization_config": own | {"weight_block_size": [64, 64]}}, [])
    assert found == CONFIG["quantization_config"] | {"modules_to_not_convert": ["lm_head"]}


def test_a_new_base_without_fp8_is_refused(lineage):
    """Nothing says which weights should be FP8: the error says so and what to do."""
    with pytest.raises(UsageError, match="no FP8 weights") as error:
        plan(lineage.recipe(dtype="fp8-block"))
    assert "leave `dtype` out" in error.value.remedy


def test_a_name_that_is_taken_is_refused(tmp_path):
    """The new base has scales a row and, under the name of the new scales, something else."""
    new = {
        "a.weight": fp8(0, a=(4, 4))["a.weight"],
        "a.weight_scale": np.ones(4, np.float32),
        "a.weight_scale_inv": np.ones(3, np.int64),
    }
    with pytest.raises(CheckpointError, match="another tensor has the name"):
        plan(recipe(tmp_path, new))


def test_the_dtype_is_part_of_the_digest(tmp_path):
    """With and without requantization, an output is not the same."""
    new = fp8(0, a=(4, 4))
    one = plan(recipe(tmp_path, new, fp8(1, a=(4, 4))))
    other = plan(Recipe(one.recipe.new_base, one.recipe.deltas))
    assert one.digest != other.digest
    assert one.recipe.to_dict()["dtype"] == "fp8-block"
