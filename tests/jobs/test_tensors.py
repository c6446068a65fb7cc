"""The tensors of a mix in memory."""

import numpy as np
import pytest

from paramdelta import mix, plan, tensors
from paramdelta.errors import UsageError


def test_they_are_those_of_the_written_mix(lineage, tmp_path):
    """Names and every number; arrays are aligned as torch aligns its own."""
    torch = pytest.importorskip("torch")
    file = pytest.importorskip("safetensors.torch")
    out = mix(lineage.recipe(), tmp_path / "out").folder
    expected = file.load_file(out / "model.safetensors")
    found = dict(tensors(lineage.recipe(), framework="torch", workers=3, memory="64MB"))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name])
        assert value.data_ptr() % 64 == 0


def test_numpy_has_bf16_as_float32(lineage):
    """The numbers are the same in both frameworks."""
    pytest.importorskip("torch")
    wide = dict(tensors(lineage.recipe(), framework="torch"))
    for name, value in tensors(lineage.recipe()):
        assert value.dtype == np.float32
        assert np.array_equal(value, wide[name].float().numpy())


def test_another_dtype_is_that_of_the_output(lineage):
    """Mixed in float32, not rounded to the new base's dtype before; a plan has its dtype."""
    found = dict(tensors(lineage.recipe(), dtype="f32"))
    rounded = dict(tensors(lineage.recipe(0.3)))
    exact = dict(tensors(lineage.recipe(0.3), dtype="f32"))
    assert all(value.dtype == np.float32 for value in found.values())
    assert any(not np.array_equal(exact[name], rounded[name]) for name in exact)
    with pytest.raises(UsageError) as caught:
        next(tensors(plan(lineage.recipe()), dtype="f32"))
    assert caught.value.code == "dtype-with-plan"
