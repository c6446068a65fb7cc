"""Numbers in ggml's quantized blocks in plain numpy, written from the layout of the blocks.

For each number of a block there are tables of the byte and the bits that hold its code. All is
computed in float32, in the order of ``dequantize_row_*`` of ggml-quants.c.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_I32 = np.arange(32)
_I256 = np.arange(256)


def numbers(name: str, blocks: npt.NDArray[np.uint8]) -> Floats:
    """The numbers of whole blocks: uint8 (N, bytes) -> float32 (N, elements).

    ``name``: of the ggml type, such as "Q4_K".
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return _FORMATS[name](blocks)


def _half(blocks: Array, at: int) -> Floats:
    """The float16 at a byte of each block, as a column."""
    found: Floats = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)
    return found


def _bits(blocks: Array, bytes_: Array, shifts: Array | int, count: int) -> npt.NDArray[np.int32]:
    """``count`` bits of the given bytes of each block, from the bits ``shifts`` on."""
    found: npt.NDArray[np.int32] = (blocks[:, bytes_].astype(np.int32) >> shifts) & (2**count - 1)
    return found


def _nibbles(blocks: Array, at: int) -> Array:
    """32 codes in 16 bytes: the low nibbles come first."""
    return _bits(blocks, at + _I32 % 16, _I32 // 16 * 4, 4)


def _fifths(blocks: Array, at: int) -> Array:
    """The fifth bits of 32 codes in four bytes, as 0 or 16."""
    return _bits(blocks, at + _I32 // 8, _I32 % 8, 1) << 4


def _float(codes: Array) -> Floats:
    return codes.astype(np.float32)


def _q4_0(blocks: Array) -> Floats:
    return _half(blocks, 0) * _float(_nibbles(blocks, 2) - 8)


def _q4_1(blocks: Array) -> Floats:
    return _half(blocks, 0) * _float(_nibbles(blocks, 4)) + _half(blocks, 2)


def _q5_0(blocks: Array) -> Floats:
    return _half(blocks, 0) * _float((_nibbles(blocks, 6) | _fifths(blocks, 2)) - 16)


def _q5_1(blocks: Array) -> Floats:
    codes = _nibbles(blocks, 8) | _fifths(blocks, 4)
    return _half(blocks, 0) * _float(codes) + _half(blocks, 2)


def _q8_0(blocks: Array) -> Floats:
    return _half(blocks, 0) * _float(blocks[:, 2:].view(np.int8))


def _twos(blocks: Array, at: int) -> Array:
    """256 codes of two bits: each half has 32 bytes, whose pairs of bits are runs of 32 codes."""
    return _bits(blocks, at + _I256 // 128 * 32 + _I256 % 32, _I256 // 32 % 4 * 2, 2)


def _q2_k(blocks: Array) -> Floats:
    group = _I256 // 16
    scale = _half(blocks, 80) * _float(_bits(blocks, group, 0, 4))
    least = _half(blocks, 82) * _float(_bits(blocks, group, 4, 4))
    return scale * _float(_twos(blocks, 16)) - least


def _q3_k(blocks: Array) -> Floats:
    group = _I256 // 16
    low = _bits(blocks, 96 + group % 8, group // 8 * 4, 4)
    high = _bits(blocks, 104 + group % 4, group // 4 * 2, 2)
    scale = _half(blocks, 108) * _float((low | high << 4) - 32)
    is_small = 1 - _bits(blocks, _I256 % 32, _I256 // 32, 1)
    return scale * _float(_twos(blocks, 32) - 4 * is_small)


def _six_bits(blocks: Array, group: Array) -> tuple[Array, Array]:
    """Scales and offsets of Q4_K and Q5_K, which share twelve bytes."""
    is_first, late = group < 4, np.maximum(group, 4)
    scale = np.where(
        is_first,
        _bits(blocks, 4 + group % 4, 0, 6),
        _bits(blocks, 8 + late, 0, 4) | _bits(blocks, late, 6, 2) << 4,
    )
    least = np.where(
        is_first,
        _bits(blocks, 8 + group % 4, 0, 6),
        _bits(blocks, 8 + late, 4, 4) | _bits(blocks, 4 + late, 6, 2) << 4,
    )
    return scale, least


def _with_six_bits(blocks: Array, codes: Array) -> Floats:
    scale, least = _six_bits(blocks, _I256 // 32)
    scaled = _half(blocks, 0) * _float(scale) * _float(codes)
    return scaled - _half(blocks, 2) * _float(least)


def _q4_k(blocks: Array) -> Floats:
    codes = _bits(blocks, 16 + _I256 // 64 * 32 + _I256 % 32, _I256 // 32 % 2 * 4, 4)
    return _with_six_bits(blocks, codes)


def _q5_k(blocks: Array) -> Floats:
    low = _bits(blocks, 48 + _I256 // 64 * 32 + _I256 % 32, _I256 // 32 % 2 * 4, 4)
    high = _bits(blocks, 16 + _I256 % 32, _I256 // 32, 1)
    return _with_six_bits(blocks, low | high << 4)


def _q6_k(blocks: Array) -> Floats:
    half, run, place = _I256 // 128, _I256 // 32 % 4, _I256 % 32
    low = _bits(blocks, half * 64 + run % 2 * 32 + place, run // 2 * 4, 4)
    high = _bits(blocks, 128 + half * 32 + place, run * 2, 2)
    scale = blocks[:, 192:208].view(np.int8)[:, _I256 // 16]
    return _half(blocks, 208) * _float(scale) * _float((low | high << 4) - 32)


_FORMATS: dict[str, Callable[[Array], Floats]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
