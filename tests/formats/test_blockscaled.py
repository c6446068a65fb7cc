"""FP8 weights with scales: exact, whatever the blocks; never without their scales."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta.errors import CheckpointError
from paramdelta.formats.blockscaled import BlockScaled, scaled_weights
from tests.numbers import fp8_values
from tests.views import Store


@pytest.mark.parametrize(("name", "torch_name"), [("F8_E4M3", "e4m3fn"), ("F8_E5M2", "e5m2")])
def test_all_codes_are_torchs(name, torch_name):
    """The 256 values are those of torch's type of the same format, signs of zero included; so are
    those of the tests' own table.
    """
    torch = pytest.importorskip("torch")
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(getattr(torch, f"float8_{torch_name}")).double().numpy()
    store = Store()
    weight = store.tensor("w", codes.numpy().reshape(16, 16), name)
    scale = store.tensor("s", np.ones((1, 1), np.float32))
    view = BlockScaled("w", "F64", (16, 16), weight, scale, (16, 16))
    for got in (view.array(0, 256, store.fetch), fp8_values(name)):
        assert np.array_equal(got, expected, equal_nan=True)
        assert np.array_equal(np.signbit(got)[expected == 0], np.signbit(expected)[expected == 0])


def reference(codes, scale, block, dtype="F8_E4M3"):
    """The formula, element by element."""
    rows, columns = np.indices(codes.shape)
    return fp8_values(dtype)[codes] * scale[rows // block[0], columns // block[1]]


SHAPES = [((5, 7), (2, 3)), ((128, 256), (128, 128)), ((130, 200), (128, 128)), ((9, 4), (1, 4))]


@pytest.mark.parametrize(("shape", "block"), [*SHAPES, ((6, 6), (6, 6))])
def test_any_run_is_exact(shape, block):
    """Whole blocks, cut ones, a scale a row, one in all: any run is the float64 product."""
    chance = np.random.default_rng(0)
    codes = chance.integers(0, 0x7E, shape).astype(np.uint8)
    blocks = [-(-n // b) for n, b in zip(shape, block, strict=True)]
    scale = chance.random(blocks).astype(np.float32)
    store = Store()
    weight, scales = store.tensor("w", codes), store.tensor("s", scale)
    view = BlockScaled("w", "F64", shape, weight, scales, block)
    expected = reference(codes, scale.astype(np.float64), block).reshape(-1)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, codes.size), st.integers(0, codes.size))
    def check(a, b):
        start, stop = min(a, b), max(a, b)
        assert (view.array(start, stop, store.fetch) == expected[start:stop]).all()

    check()
    assert view.nbytes == codes.nbytes + scale.nbytes


@pytest.mark.parametrize(
    ("scale", "ending", "block"),
    [
        (np.ones((2, 3), np.float32), "_scale_inv", (128, 128)),
        (np.ones((200, 1), np.float32), "_scale", (1, 300)),
        (np.ones(200, np.float32), "_scale", (1, 300)),
        (np.ones((), np.float32), "_scale", (200, 300)),
        (np.ones(1, np.float32), "_scale", (200, 300)),
    ],
)
def test_scales_are_found_by_name_and_shape(scale, ending, block):
    """DeepSeek's blocks, compressed-tensors' rows and whole tensors; scales are no weights."""
    store = Store()
    tensors = {
        "w.weight": store.tensor("w.weight", np.zeros((200, 300), np.uint8)),
        f"w.weight{ending}": store.tensor(f"w.weight{ending}", scale),
        "w.input_scale": store.tensor("w.input_scale", np.ones(1, np.float32)),
        "w.activation_scale": store.tensor("w.activation_scale", np.ones((), np.float32)),
        "norm.weight": store.tensor("norm.weight", np.ones(3, np.float32)),
    }
    views, left = scaled_weights(tensors, {}, "here")
    assert views.keys() == {"w.weight", "norm.weight"}
    assert views["w.weight"].block == block
    assert left == ("w.input_scale", "w.activation_scale")


def test_blocks_of_another_size():
    """config.json may say another size of blocks; a size that does not fit is refused."""
    store = Store()
    tensors = {
        "w": store.tensor("w", np.zeros((64, 64), np.uint8)),
        "w_scale_inv": store.tensor("w_scale_inv", np.ones((2, 4), np.float32)),
    }
    config = {"quantization_config": {"weight_block_size": [32, 16]}}
    assert scaled_weights(tensors, config, "here")[0]["w"].block == (32, 16)
    group = {"weights": {"block_structure": [32, 16]}}
    config = {"quantization_config": {"config_groups": {"group_0": group}}}
    assert scaled_weights(tensors, config, "here")[0]["w"].block == (32, 16)
    with pytest.raises(CheckpointError, match="do not fit"):
        scaled_weights(tensors, {}, "here")
    for bad in ([32], [0, 16], "x", [32.5, 16]):
        with pytest.raises(CheckpointError, match="do not fit"):
            scaled_weights(tensors, {"quantization_config": {"weight_block_size": bad}}, "here")


def test_without_scales_it_is_no_weight():
    """An FP8 tensor alone stays FP8, which the plan refuses to mix."""
    store = Store()
    views, _ = scaled_weights({"w": store.tensor("w", np.zeros((4, 4), np.uint8))}, {}, "here")
    assert not views["w"].kind.mixable


def test_exponents_alone_as_scales():
    """F8_E8M0 scales are powers of two; all ones is NaN."""
    store = Store()
    weight = store.tensor("w", np.full((1, 3), 0x38, np.uint8))  # 1.0
    scale = store.tensor("s", np.array([[127, 130, 255]], np.uint8), "F8_E8M0")
    view = BlockScaled("w", "F64", (1, 3), weight, scale, (1, 1))
    assert np.array_equal(view.array(0, 3, store.fetch), [1.0, 8.0, np.nan], equal_nan=True)
