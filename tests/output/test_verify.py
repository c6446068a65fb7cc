"""verify finds what is wrong and accepts what is right."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import MisfitError, mix, verify
from paramdelta.output.verify import rounded
from tests.checkpoints import encode, llama
from tests.numbers import nearest


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_rounding_is_to_nearest_even(dtype, value):
    """verify's own rounding is the definition's, subnormals and overflow included."""
    assert float(rounded(np.array([value]), dtype)[0]) == nearest(Fraction(value), dtype)


def test_rounding_keeps_what_is_not_finite():
    """Infinity and NaN stay what they are."""
    found = rounded(np.array([math.inf, -math.inf, math.nan]), "BF16")
    assert found[0] == math.inf
    assert found[1] == -math.inf
    assert math.isnan(found[2])


@pytest.mark.parametrize("choices", [{}, {"scale": 0.37}, {"dtype": "F32"}, {"dtype": "F16"}])
def test_right_outputs_pass(lineage, tmp_path, choices):
    """Plain, scaled and converted mixes are verified in full."""
    mix(lineage.recipe(**choices), tmp_path / "out")
    result = verify(tmp_path / "out", share=1.0)
    assert result.elements == result.total == sum(v.size for v in llama().values())
    assert result.tensors == 21


def test_one_flipped_bit_is_found(lineage, tmp_path):
    """A single changed bit anywhere is named by tensor and element."""
    mix(lineage.recipe(), tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(MisfitError, match=r"lm_head\.weight.*element 511"):
        verify(tmp_path / "out", share=1.0)


def test_changed_sources_are_named(lineage, tmp_path):
    """A source with another header is no longer the one that the lock names."""
    mix(lineage.recipe(), tmp_path / "out")
    for shard in lineage.post.glob("model*"):
        shard.unlink()
    tensors = llama(1)
    (lineage.post / "model.safetensors").write_bytes(encode(tensors))
    with pytest.raises(MisfitError, match="not those") as error:
        verify(tmp_path / "out")
    assert str(lineage.post) in error.value.where


def test_a_missing_tensor_is_found(lineage, tmp_path):
    """An output that lost a tensor is not the plan's."""
    mix(lineage.recipe(), tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_bytes(encode({"a": np.ones(2, np.float32)}))
    with pytest.raises(MisfitError, match="not those of the plan"):
        verify(tmp_path / "out")


def test_damaged_locks_are_refused(lineage, tmp_path):
    """A lock of another version or form is no lock."""
    mix(lineage.recipe(), tmp_path / "out")
    lock = tmp_path / "out" / "paramdelta.lock.json"
    content = json.loads(lock.read_text())
    for damage in ({"lock_version": 99}, {"recipe": {"new_base": 1}}):
        lock.write_text(json.dumps(content | damage))
        with pytest.raises(MisfitError, match="lock"):
            verify(tmp_path / "out")
