"""verify finds what is wrong and accepts what is right."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paramdelta.output.verify import _compare, _value, exact_value, rounded

from paramdelta import MisfitError, mix, verify
from paramdelta.formats.adapter import LowRank
from paramdelta.formats.view import ABSENT, Part, Rows, Transposed, Wide, Zeros
from paramdelta.planning.plan import OutputTensor, Pair
from tests import opening
from tests.checkpoints import bf16, encode, llama
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


# -- a Δ that is a product of matrices ---------------------------------------------------------


def tensors(path, **arrays):
    """Stored tensors of a file, by name."""
    path.write_bytes(encode(arrays))
    return {tensor.name: tensor for tensor in opening.header(path)}


def product(tmp_path, rows=7, depth=5, columns=9, factor=16 / 3):
    """A low-rank Δ of random float32 factors in a file."""
    chance = np.random.default_rng(0)
    up, down = chance.normal(size=(rows, depth)), chance.normal(size=(depth, columns))
    stored = tensors(tmp_path / "factors", b=up.astype(np.float32), a=down.astype(np.float32))
    return LowRank("w", "F64", (rows, columns), stored["b"], stored["a"], factor)


def test_products_of_matrices_are_verified_by_a_path_of_their_own(tmp_path):
    """Read by the engine, recomputed by verify and summed exactly: within the bound that is named,
    through every view that can be laid around it.
    """
    delta = product(tmp_path)
    order = np.array([3, ABSENT, 0, 6], np.int32).tobytes()
    inputs = opening.Inputs()
    views = [
        delta,
        delta.turned(),
        Transposed("w", "F64", (9, 7), delta),
        Part("w", "F64", (2, 9), delta, 13),
        Wide("w", "F64", (7, 9), delta),
        Rows("w", "F64", (4, 9), (delta,), order),
        Rows.joined("w", (14, 9), [delta, delta]),
    ]
    for view in views:
        read = view.float64(0, view.elements, inputs.fetch)
        for start, stop in ((0, view.elements), (4, view.elements - 3)):
            np.testing.assert_allclose(_value(view, start, stop), read[start:stop], rtol=1e-13)
        for element, value in enumerate(map(float, read)):
            exact, slack = exact_value(view, element, value)
            assert abs(exact - Fraction(value)) <= slack < Fraction(1, 2**45)
            assert (slack == 0) == (value == 0)
    inputs.close()


def test_a_product_that_is_not_finite_is_left_to_float64(tmp_path):
    """Infinite factors have no fraction: the value stands as it is."""
    stored = tensors(tmp_path / "f", b=np.full((1, 1), np.inf), a=np.ones((1, 2)))
    delta = LowRank("w", "F64", (1, 2), stored["b"], stored["a"], 1.0)
    assert np.array_equal(_value(delta, 0, 2), [np.inf, np.inf])
    assert exact_value(delta, 0, 1.0) == (1, 0)


@pytest.mark.parametrize(
    ("got", "small", "right"),
    [(256.0, 2**-53, True), (258.0, 2**-53, True), (260.0, 2**-53, False), (256.0, 2**-30, False)],
)
def test_only_a_tie_is_a_matter_of_the_last_bits(tmp_path, got, small, right):
    """256 + (1 + 2⁻⁵³ + 2⁻⁵³) in bfloat16: summed in order the Δ is 1 and the tie goes to 256,
    exactly it is a little more and goes to 258. Both are right; nothing else is, and nothing is
    where the sum has room.
    """
    stored = tensors(
        tmp_path / "f",
        b=np.array([[1, small, small]], np.float32),
        a=np.ones((3, 1), np.float32),
        new=bf16([[256.0]]),
        got=bf16([[got]]),
    )
    delta = LowRank("w", "F64", (1, 1), stored["b"], stored["a"], 1.0)
    pair = Pair(0, delta, Zeros("w", "F64", (1, 1)), 1.0)
    tensor = OutputTensor("w", "BF16", (1, 1), stored["new"], (pair,))
    if right:
        _compare(tensor, stored["got"], 0, 1)
    else:
        with pytest.raises(MisfitError, match="not what its sources give"):
            _compare(tensor, stored["got"], 0, 1)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_just_below_a_power_of_two(dtype):
    """There the numbers are twice as close: the power itself is wrong for the one below it."""
    from types import SimpleNamespace

    from paramdelta.output.verify import _close

    from paramdelta.dtypes import DTYPES

    tensor = SimpleNamespace(dtype=dtype, pairs=[SimpleNamespace(scale=1.0)], sparse=False)
    step = Fraction(1, 2 ** DTYPES[dtype].digits)  # from the number below 1 to 1
    for sign in (1, -1):
        assert not _close(sign * (1 - step), Fraction(0), sign * 1.0, tensor)
        assert _close(sign * (1 - step / 2), Fraction(0), sign * 1.0, tensor)
        assert _close(sign * (1 + step), Fraction(0), sign * 1.0, tensor)
        assert not _close(sign * (1 + 3 * step / 2), Fraction(0), sign * 1.0, tensor)
