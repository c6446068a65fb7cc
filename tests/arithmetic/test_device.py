"""The sum in operations of torch has the bits of the compiled kernels. Run on the CPU only."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from paramdelta.arithmetic import device  # noqa: E402
from paramdelta.schemes.pair import Pair  # noqa: E402
from paramdelta.schemes.scheme import BLOCK, SCRATCH  # noqa: E402
from paramdelta.schemes.sum import SUM  # noqa: E402

KINDS = {
    "BF16": (np.uint16, torch.bfloat16),
    "F16": (np.int16, torch.float16),
    "F32": (np.float32, torch.float32),
    "F64": (np.float64, torch.float64),
}
SIZE = 20_000


def numbers(kind, near, random):
    """Finite numbers: any bits, or such as differ little, whose sums are often ties or zero."""
    view, torch_kind = KINDS[kind]
    if near:
        choice = random.choice([-1.0, -0.0, 0.0, 0.5, 1.0, 2.0**-9, 3.0, 1 + 2.0**-7], SIZE)
        value = torch.tensor(choice * random.choice([1, 1, 1, 2.0**-20, 2.0**12], SIZE))
        return value.to(torch_kind)
    size = np.dtype(view).itemsize
    bits = torch.from_numpy(random.integers(0, 256, SIZE * size, np.uint8)).view(torch_kind)
    if kind in ("F32", "F64"):
        bits = bits.clamp(-1e30, 1e30)
    return torch.where(torch.isfinite(bits), bits, torch.ones_like(bits))


def stored(tensor, kind):
    """A tensor as the kernels see it."""
    return tensor.contiguous().view(torch.uint8).numpy().view(KINDS[kind][0])


def kernel(new, deltas, kinds, out):
    """What the compiled kernels give."""
    pairs = [Pair(number, None, None, scale) for number, (_, _, scale) in enumerate(deltas)]
    operands = [new, *(each for post, base, _ in deltas for each in (post, base))]
    arrays = [stored(tensor, kind) for tensor, kind in zip(operands, kinds, strict=True)]
    result = np.empty(SIZE, KINDS[out][0])
    SUM.combine(pairs, arrays, 0, result, out, np.empty((SCRATCH, BLOCK)))
    return result


@pytest.mark.parametrize("near", [True, False], ids=["near", "any"])
@pytest.mark.parametrize("scales", [(1.0,), (-1.0,), (0.3,), (1.0, 1.0), (0.7, -1.3)], ids=str)
@pytest.mark.parametrize(
    ("operands", "out"),
    [("BF16", "BF16"), ("F16", "F16"), ("F32", "F32"), ("F32", "BF16"), ("F64", "F16")],
)
def test_bits_are_those_of_the_kernels(operands, out, scales, near):
    """Every finite result has the same bits: subnormals, ties and signed zeros too."""
    random = np.random.default_rng(len(scales) * 10 + near)
    new, *others = (numbers(operands, near, random) for _ in range(1 + 2 * len(scales)))
    others[0][: SIZE // 4] = others[1][: SIZE // 4]  # post = base
    others[1][SIZE // 4 : SIZE // 2] = new[SIZE // 4 : SIZE // 2]  # base = new
    deltas = list(zip(others[::2], others[1::2], scales, strict=True))
    expected = kernel(new, deltas, [operands] * (1 + 2 * len(scales)), out)
    keep = torch.isfinite(torch.from_numpy(expected.view(np.uint8)).view(KINDS[out][1])).numpy()
    chosen = [(post[keep], base[keep], scale) for post, base, scale in deltas]
    found = device.mixed(new[keep], chosen, KINDS[out][1])
    assert keep.sum() > SIZE / 20
    assert np.array_equal(stored(found, out), expected[keep])


def test_a_sum_of_different_dtypes():
    """Operands may have any float dtype each."""
    random = np.random.default_rng(5)
    kinds = ["BF16", "F32", "F16"]
    new, post, base = (numbers(kind, True, random) for kind in kinds)
    found = device.mixed(new, [(post, base, 1.0)], torch.bfloat16)
    assert np.array_equal(stored(found, "BF16"), kernel(new, [(post, base, 1.0)], kinds, "BF16"))


def test_what_is_not_finite_stays_so():
    """Infinite operands, and sums that the dtype cannot hold."""
    new, post, base = (torch.ones(4) for _ in range(3))
    post[2] = float("inf")
    found = device.mixed(new, [(post, base, 1.0)], torch.float32)
    assert torch.isfinite(found).tolist() == [True, True, False, True]
    large = torch.full((4,), 3e38)
    found = device.mixed(large, [(large, -large, 1.0)], torch.bfloat16)
    assert not torch.isfinite(found).any()
