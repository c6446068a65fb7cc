"""The sum of `kernels`, in operations of torch: for tensors that are on a device.

Each operation of torch rounds once, as IEEE 754 says. So the double-double sums, the rounding to
odd and the last rounding are those of `kernels`, operation by operation and bit by bit. They must
not be compiled into fused ones: a fused multiply-add would change the error terms.

The only module of `arithmetic` that imports torch. Run and tested on CPUs only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, dtype

NARROW = ("BF16", "F16", "F32")
"""Dtypes of results. Operands may be F64 as well."""

_SPLIT = 134217729.0  # 2^27 + 1: Dekker's
_LARGE = 1e290  # above, splitting would overflow


def mixed(
    new: "Tensor", deltas: Sequence[tuple["Tensor", "Tensor", float]], kind: "dtype"
) -> "Tensor":
    """``new + Σ scale · (post − base)``, rounded once.

    ``deltas``: post, base and scale of each Δ. All tensors have one shape and are on one device.
    ``kind``: bfloat16, float16 or float32. A sum that is exactly zero has the sign that
    `kernels.mix_exact` gives it. NaNs may have other bits than those of the kernels.
    """
    import torch

    high = new.double()
    low = torch.zeros_like(high)
    for post, base, scale in deltas:
        high, low = _added(post.double(), base.double(), scale, high, low)
    total, rest = _two_sum(high, low)
    is_exact = low == 0.0  # otherwise a negative zero would lose its sign
    total, rest = torch.where(is_exact, high, total), torch.where(is_exact, low, rest)
    if len(deltas) == 1 and abs(deltas[0][2]) == 1:
        post, base, scale = deltas[0]
        plus, minus = (post, base) if scale == 1 else (base, post)
        total = torch.where(total == 0.0, _zero(new.double(), plus.double(), minus.double()), total)
    return _narrow(total, rest, kind)


def _two_sum(a: "Tensor", b: "Tensor") -> "tuple[Tensor, Tensor]":
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _halves(value: "Tensor") -> "tuple[Tensor, Tensor]":
    split = _SPLIT * value
    high = split - (split - value)
    return high, value - high


def _added(
    post: "Tensor", base: "Tensor", scale: float, high: "Tensor", low: "Tensor"
) -> "tuple[Tensor, Tensor]":
    """See `kernels.add`: ``high + low`` with ``scale · (post − base)`` added."""
    import torch

    split = _SPLIT * scale
    scale_high = split - (split - scale)
    scale_low = scale - scale_high
    difference, error = _two_sum(post, -base)
    product = scale * difference
    upper, lower = _halves(difference)
    below = scale * error + (
        ((scale_high * upper - product) + scale_high * lower + scale_low * upper)
        + scale_low * lower
    )
    rest = torch.where(difference.abs() < _LARGE, below, error)
    total, error = _two_sum(high, product)
    second, error2 = _two_sum(low, error + rest)
    sum_, second = _two_sum(total, second)
    second = second + error2
    is_finite = (total - total) == 0.0
    sum_ = torch.where(is_finite, sum_, total)
    second = torch.where(is_finite, second, torch.zeros_like(second))
    is_same = difference == 0.0  # also keeps a negative zero in the accumulator
    return torch.where(is_same, high, sum_), torch.where(is_same, low, second)


def _zero(new: "Tensor", plus: "Tensor", minus: "Tensor") -> "Tensor":
    """The zero of a sum that is zero: ``base = new`` gives back post, ``post = base`` new."""
    import torch

    n, p, b = (value.view(torch.int64) for value in (new, plus, minus))
    return torch.where(n == b, plus, torch.where(p == b, new, torch.zeros_like(new)))


def _narrow(value: "Tensor", rest: "Tensor", kind: "dtype") -> "Tensor":
    """``value + rest`` rounded once, to nearest even: to odd first, so that no tie is made."""
    import torch

    if kind == torch.float32:
        bits = value.view(torch.int64)
        return _odd(bits, value, rest).view(torch.float64).float()
    narrow = value.float()
    left = value - narrow.double()
    left = torch.where(left != 0.0, left, rest)
    return _odd(narrow.view(torch.int32), value, left).view(torch.float32).to(kind)


def _odd(bits: "Tensor", value: "Tensor", rest: "Tensor") -> "Tensor":
    """The bits of a value that has ``rest`` left, with an odd last bit if there is a rest."""
    import torch

    step = torch.where((rest > 0.0) == (value > 0.0), 1, -1).to(bits.dtype)
    is_even = ((rest > 0.0) | (rest < 0.0)) & ((bits & 1) == 0)
    return torch.where(is_even, bits + step, bits)
