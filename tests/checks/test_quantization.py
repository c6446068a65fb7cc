"""Quantized weights, by what is stored, and what is said of them."""

import json
import struct

import numpy as np
import pytest

from paramdelta.checks import check
from paramdelta.checks.folder import open_folder
from paramdelta.checks.quantization import stated_bits, statements
from paramdelta.checks.weights import Stored, read_weights
from paramdelta.dtypes import DTYPES
from paramdelta.formats.codes import plain_shapes, read_codes
from paramdelta.planning.findings import Findings, Severity
from tests.checks.folders import edit, right

REFUSED = Severity.REFUSED
STEM = "model.layers.0.mlp.up_proj."
# What a 16 × 8 (or, packed, 16 × 64) weight becomes in each format: part -> dtype and shape.
STORED = {
    "fp8": {"weight": ("F8_E4M3", (16, 8)), "weight_scale_inv": ("F32", (1, 1))},
    "fp8 row": {"weight": ("F8_E4M3", (16, 8)), "weight_scale": ("BF16", (16, 1))},
    "fp8 static": {
        "weight": ("F8_E4M3", (16, 8)), "weight_scale": ("F32", ()), "input_scale": ("F32", ()),
    },
    "int8": {"weight": ("I8", (16, 8)), "weight_scale": ("F32", (16, 1))},
    "gptq": {
        "qweight": ("I32", (8, 16)), "qzeros": ("I32", (2, 2)), "scales": ("F16", (2, 16)),
        "g_idx": ("I32", (64,)),
    },
    "awq": {
        "qweight": ("I32", (64, 2)), "qzeros": ("I32", (2, 2)), "scales": ("F16", (2, 16)),
    },
    "mlx": {"weight": ("U32", (16, 8)), "scales": ("F16", (16, 2)), "biases": ("F16", (16, 2))},
    "packed": {
        "weight_packed": ("I32", (16, 8)), "weight_scale": ("BF16", (16, 2)),
        "weight_shape": ("I64", (2,)),
    },
    "nvfp4": {
        "weight": ("U8", (16, 32)), "weight_scale": ("F8_E4M3", (16, 4)),
        "weight_scale_2": ("F32", ()), "input_scale": ("F32", ()),
    },
    "bnb8": {"weight": ("I8", (16, 8)), "SCB": ("F32", (16,)), "weight_format": ("U8", ())},
    "bnb4": {
        "weight": ("U8", (64, 1)), "weight.absmax": ("F32", (2,)),
        "weight.quant_map": ("F32", (16,)), "weight.quant_state.bitsandbytes__nf4": ("U8", (9,)),
    },
}  # fmt: skip
BITS = {"bits": 4, "group_size": 32}
PACKED = {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
# What config.json says of each, the format that is recognized, and the plain shape.
SAID = {
    "fp8": ({"quant_method": "fp8"}, "fp8", (16, 8)),
    "fp8 row": ({"quant_method": "compressed-tensors"}, "fp8", (16, 8)),
    "fp8 static": ({"quant_method": "fp8"}, "fp8", (16, 8)),
    "int8": ({"quant_method": "compressed-tensors"}, "compressed-tensors", (16, 8)),
    "gptq": ({"quant_method": "gptq", **BITS}, "gptq", (16, 64)),
    "awq": ({"quant_method": "awq", **BITS}, "awq", (16, 64)),
    "mlx": (BITS, "mlx", (16, 64)),
    "packed": ({"quant_method": "compressed-tensors", **PACKED}, "compressed-tensors", (16, 64)),
    "nvfp4": ({"quant_method": "modelopt"}, "modelopt", (16, 64)),
    "bnb8": ({"quant_method": "bitsandbytes"}, "bitsandbytes", (16, 8)),
    "bnb4": ({"quant_method": "bitsandbytes"}, "bitsandbytes", None),
}


def stored(parts):
    """Headers of the parts of one weight."""
    return {
        STEM + part: Stored(STEM + part, dtype, shape, "f", 0, 0)
        for part, (dtype, shape) in parts.items()
    }


def write(folder, parts):
    """A safetensors file of zeros."""
    header, end = {}, 0
    for part, (dtype, shape) in parts.items():
        size = DTYPES[dtype].nbytes(1)
        for length in shape:
            size *= length
        header[part] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(end)
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize("kind", STORED)
def test_format_is_recognized(kind):
    """One weight, all its parts, and the shape that it stands for."""
    said, wanted, shape = SAID[kind]
    tensors = stored(STORED[kind])
    bits = stated_bits(list(statements({"quantization_config": said}, {})))
    (coded,) = read_codes(tensors, *bits)
    assert (coded.format, coded.weight, coded.shape) == (wanted, STEM + "weight", shape)
    assert set(coded.parts) == set(tensors)
    plain = plain_shapes(tensors, [coded])
    assert plain == (None if shape is None else {STEM + "weight": ("BF16", shape)})


def test_experts_of_mxfp4():
    """Blocks and scales of all experts at once, turned."""
    tensors = {
        "mlp.experts.down_proj_blocks": Stored("", "U8", (4, 48, 2, 16), "f", 0, 0),
        "mlp.experts.down_proj_scales": Stored("", "U8", (4, 48, 2), "f", 0, 0),
    }
    (coded,) = read_codes(tensors)
    assert (coded.weight, coded.shape) == ("mlp.experts.down_proj", (4, 64, 48))


def test_plain_weights_are_no_codes():
    """Floats, counters and masks."""
    tensors = {
        "a.weight": Stored("", "BF16", (2, 2), "f", 0, 0),
        "a.scale": Stored("", "F32", (2,), "f", 0, 0),
        "a.num_batches_tracked": Stored("", "I64", (), "f", 0, 0),
        "a.mask": Stored("", "BOOL", (2, 2), "f", 0, 0),
        "a.ids.weight": Stored("", "I32", (2, 2), "f", 0, 0),
    }
    assert read_codes(tensors) == []


def findings(folder):
    """Codes of what is found about quantization."""
    found = check(folder).findings
    return {f.code: f.severity for f in found if "quant" in f.code or "scale" in f.code}


@pytest.mark.parametrize("kind", STORED)
def test_said_and_stored(tmp_path, kind):
    """Nothing where they agree; a refusal where one of them is lacking, or they differ."""
    said = SAID[kind][0]
    right(tmp_path)
    write(tmp_path, {STEM + part: value for part, value in STORED[kind].items()})
    key = "quantization_config"
    edit(tmp_path, "config.json", **{key: said})
    assert findings(tmp_path) == {}
    edit(tmp_path, "config.json", **{key: ...})
    assert findings(tmp_path) == {"quantization-unstated": REFUSED}
    other = "gptq" if kind not in ("gptq",) else "fp8"
    edit(tmp_path, "config.json", **{key: {"quant_method": other, "bits": 4}})
    assert findings(tmp_path)["quantization-untrue"] is REFUSED
    right(tmp_path)
    edit(tmp_path, "config.json", **{key: said})
    wanted = {} if said.get("quant_method") == "bitsandbytes" else {"quantization-untrue": REFUSED}
    assert findings(tmp_path) == wanted


def test_only_mlx_knows(tmp_path):
    """MLX's own key is no statement for the others."""
    right(tmp_path)
    write(tmp_path, {STEM + part: value for part, value in STORED["mlx"].items()})
    edit(tmp_path, "config.json", quantization=BITS)
    assert findings(tmp_path) == {"quantization-unstated": Severity.WARNING}
    edit(tmp_path, "config.json", quantization_config=BITS)
    assert findings(tmp_path) == {}


def test_gptq_of_2023(tmp_path):
    """quantize_config.json alone is not read by the loaders of today."""
    right(tmp_path)
    write(tmp_path, {STEM + part: value for part, value in STORED["gptq"].items()})
    (tmp_path / "quantize_config.json").write_text(json.dumps(BITS))
    assert findings(tmp_path) == {"quantization-unstated": REFUSED}


def test_codes_without_scales(tmp_path):
    """And scales without codes, in a model that is not quantized."""
    right(tmp_path)
    write(tmp_path, {STEM + "weight": STORED["fp8"]["weight"]})
    edit(tmp_path, "config.json", quantization_config={"quant_method": "fp8"})
    assert findings(tmp_path) == {"scale-missing": REFUSED}
    write(tmp_path, {STEM + "weight": ("BF16", (16, 8)), STEM + "activation_scale": ("F32", ())})
    edit(tmp_path, "config.json", quantization_config=...)
    assert findings(tmp_path) == {"scale-without-codes": REFUSED}


def test_statements_differ(tmp_path):
    """Two places, two methods."""
    right(tmp_path)
    write(tmp_path, {STEM + part: value for part, value in STORED["fp8"].items()})
    edit(
        tmp_path,
        "config.json",
        quantization_config={"quant_method": "fp8"},
        text_config={"quantization_config": {"quant_method": "awq"}},
    )
    found = findings(tmp_path)
    assert found["quantization-disagrees"] is Severity.WARNING
    assert found["quantization-untrue"] is REFUSED


def test_places_that_state():
    """All of them, with the method in one spelling."""
    config = {
        "quantization_config": {"quant_method": "FBGEMM_FP8"},
        "compression_config": {"quant_method": "compressed-tensors"},
        "text_config": {"quantization_config": {"quant_method": "gptq"}},
        "quantization": BITS,
    }
    files = {
        "hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}},
        "quantize_config.json": BITS,
        "quant_config.json": {"w_bit": 4},
    }
    said = {s.place: s.method for s in statements(config, files)}
    assert said == {
        "config.json, quantization_config": "fbgemm-fp8",
        "config.json, compression_config": "compressed-tensors",
        "config.json, quantization": "mlx",
        "config.json, text_config.quantization_config": "gptq",
        "hf_quant_config.json": "modelopt",
        "quantize_config.json": "gptq",
        "quant_config.json": "awq",
    }


def test_scales_below_zero(tmp_path):
    """The sum of three models' scales can be anything; MLX has negative ones of its own."""
    right(tmp_path)
    write(tmp_path, {STEM + part: value for part, value in STORED["gptq"].items()})
    raw = bytearray((tmp_path / "model.safetensors").read_bytes())
    folder = open_folder(tmp_path, Findings())
    scale = read_weights(folder, "model", Findings()).tensors[STEM + "scales"]
    raw[scale.offset : scale.offset + 2] = np.float16(-1).tobytes()
    (tmp_path / "model.safetensors").write_bytes(raw)
    edit(tmp_path, "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "negative-scale" in {f.code for f in check(tmp_path).findings}
