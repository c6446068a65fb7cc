"""Numbers that are not finite or below zero, in every dtype, against numpy and torch."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paramdelta.checks import check, values
from paramdelta.checks.values import not_finite
from tests.checks.folders import edit, put, right, tensors


@given(
    st.sampled_from([("F16", "<f2"), ("F32", "<f4"), ("F64", "<f8")]).flatmap(
        lambda pair: st.tuples(st.just(pair[0]), arrays(pair[1], st.integers(0, 40)))
    )
)
def test_ieee_numbers(case):
    """As numpy counts them."""
    dtype, numbers = case
    assert not_finite(numbers.tobytes(), dtype) == np.count_nonzero(~np.isfinite(numbers))


def test_finite_numbers_with_an_infinite_sum():
    """The sum is only a short cut."""
    assert not_finite(np.full(4, 1e308).tobytes(), "F64") == 0
    assert not_finite(np.array([1e308, 1e308, math.inf]).tobytes(), "F64") == 1


@given(arrays(np.uint16, st.integers(0, 40)))
def test_bfloat16(bits):
    """As the float32 with the same upper half."""
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    assert not_finite(bits.tobytes(), "BF16") == np.count_nonzero(~np.isfinite(wide))


@pytest.mark.hf
@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2"), ("F8_E8M0", "float8_e8m0fnu"),
        ("F8_E4M3FNUZ", "float8_e4m3fnuz"), ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
    ],
)  # fmt: skip
def test_eight_bits(dtype, name):
    """All 256 patterns, as torch reads them."""
    torch = pytest.importorskip("torch")
    for pattern in range(256):
        one = torch.tensor([pattern], dtype=torch.uint8).view(getattr(torch, name)).float()
        assert not_finite(bytes([pattern]), dtype) == int(not torch.isfinite(one)), pattern


def test_counts_across_blocks(tmp_path, monkeypatch):
    """A tensor larger than a block, and progress that ends at the total."""
    monkeypatch.setattr(values, "BLOCK", 64)
    state = tensors()
    state["model.embed_tokens.weight"][::3, 0] = 0x7F80
    put(right(tmp_path), "model.safetensors", state)
    steps = []
    report = check(tmp_path, progress=lambda done, total: steps.append((done, total)))
    (finding,) = report.findings
    assert finding.tensors == ("model.embed_tokens.weight (8)",)
    assert steps[-1] == (report.nbytes, report.nbytes)
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("bn.running_var", "negative-variance"),
        ("x.moving_variance", "negative-variance"),
        ("bn.running_mean", None),
        ("model.layers.0.mlp.input_scale", "negative-scale"),
        ("bn.running_variables", None),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
def test_below_zero(tmp_path, name, code, dtype):
    """Variances and scales, in every dtype; −0 is not below zero."""
    plain = np.array([0x8000, 0x3F80, 0], np.uint16)
    numbers = plain if dtype is np.uint16 else np.array([-0.0, 1, 0], dtype)
    put(right(tmp_path), "model.safetensors", tensors() | {name: numbers})
    found = [f.code for f in check(tmp_path).findings if f.code.startswith("negative")]
    assert found == []
    numbers[1] = 0xBF80 if dtype is np.uint16 else -1
    put(tmp_path, "model.safetensors", tensors() | {name: numbers})
    found = [f.code for f in check(tmp_path).findings if f.code.startswith("negative")]
    assert found == ([code] if code else [])


def test_integers_are_not_read(tmp_path, monkeypatch):
    """A counter has no NaN."""
    put(tmp_path, "model.safetensors", {"steps": np.array([2**62], np.int64)})
    put(tmp_path, "config.json", {})
    edit(tmp_path, "config.json", architectures=["X"], model_type="x")
    monkeypatch.setattr(values, "_look", lambda _: pytest.fail("it was read"))
    assert not [f for f in check(tmp_path).findings if f.code == "not-finite"]
