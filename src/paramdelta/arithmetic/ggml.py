"""Numbers in ggml's quantized blocks, as float32. Compiled by numba.

A number is a scale times a code, plus an offset; the products and the sum are rounded to float32,
in the order of ggml's own ``dequantize_row_*``. Each function decodes whole blocks: ``blocks`` is
uint8 (N, bytes), ``scales`` the float16 factors of each block as float32 (N, 1 or 2), ``out``
float32 (N, elements). Source: ggml-quants.c and ggml-common.h of llama.cpp.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.arithmetic.compiled import compiled, inlined

F32, I8, I32, U8 = np.float32, np.int8, np.int32, np.uint8


@compiled
def _q8_0(blocks: Any, scales: Any, out: Any) -> None:
    for n in range(blocks.shape[0]):
        d = scales[n, 0]
        for i in range(32):
            out[n, i] = F32(I8(blocks[n, 2 + i])) * d


@compiled
def _q4_0(blocks: Any, scales: Any, out: Any) -> None:
    for n in range(blocks.shape[0]):
        d = scales[n, 0]
        for i in range(16):
            q = I32(blocks[n, 2 + i])
            out[n, i] = d * F32((q & 15) - 8)
            out[n, 16 + i] = d * F32((q >> 4) - 8)


@compiled
def _q4_1(blocks: Any, scales: Any, out: Any) -> None:
    for n in range(blocks.shape[0]):
        d, m = scales[n, 0], scales[n, 1]
        for i in range(16):
            q = I32(blocks[n, 4 + i])
            out[n, i] = F32(d * F32(q & 15)) + m
            out[n, 16 + i] = F32(d * F32(q >> 4)) + m


@inlined
def _fifth_bits(blocks: Any, n: Any, at: Any) -> Any:
    """The bits number 4 of 32 codes, which lie in four bytes."""
    return (
        I32(blocks[n, at])
        | I32(blocks[n, at + 1]) << 8
        | I32(blocks[n, at + 2]) << 16
        | I32(blocks[n, at + 3]) << 24
    )


@compiled
def _q5_0(blocks: Any, scales: Any, out: Any) -> None:
    for n in range(blocks.shape[0]):
        d, high = scales[n, 0], _fifth_bits(blocks, n, 2)
        for i in range(16):
            q = I32(blocks[n, 6 + i])
            out[n, i] = d * F32(((q & 15) | ((high >> i) & 1) << 4) - 16)
            out[n, 16 + i] = d * F32(((q >> 4) | ((high >> (16 + i)) & 1) << 4) - 16)


@compiled
def _q5_1(blocks: Any, scales: Any, out: Any) -> None:
    for n in range(blocks.shape[0]):
        d, m, high = scales[n, 0], scales[n, 1], _fifth_bits(blocks, n, 4)
        for i in range(16):
            q = I32(blocks[n, 8 + i])
            out[n, i] = F32(d * F32((q & 15) | ((high >> i) & 1) << 4)) + m
            out[n, 16 + i] = F32(d * F32((q >> 4) | ((high >> (16 + i)) & 1) << 4)) + m


@compiled
def _q2_k(blocks: Any, scales: Any, out: Any) -> None:
    for n in range(blocks.shape[0]):
        for group in range(16):
            both = I32(blocks[n, group])
            scale = scales[n, 0] * F32(both & 15)
            least = scales[n, 1] * F32(both >> 4)
            # A half of 128 numbers has 32 bytes; each byte has one code of each of four runs of 32.
            at = 16 + group // 8 * 32 + group % 2 * 16
            shift = group % 8 // 2 * 2
            for i in range(16):
                q = (I32(blocks[n, at + i]) >> shift) & 3
                out[n, group * 16 + i] = F32(scale * F32(q)) - least


@compiled
def _q3_k(blocks: Any, scales: Any, out: Any) -> None:
    for n in range(blocks.shape[0]):
        for group in range(16):
            low = I32(blocks[n, 96 + group % 8]) >> (group // 8 * 4) & 15
            high = I32(blocks[n, 104 + group % 4]) >> (group // 4 * 2) & 3
            scale = scales[n, 0] * F32((low | high << 4) - 32)
            at = 32 + group // 8 * 32 + group % 2 * 16
            shift = group % 8 // 2 * 2
            mask = group % 2 * 16
            bit = group // 2
            for i in range(16):
                q = (I32(blocks[n, at + i]) >> shift) & 3
                # A bit that is clear stands for −4.
                q -= 4 - ((I32(blocks[n, mask + i]) >> bit & 1) << 2)
                out[n, group * 16 + i] = scale * F32(q)


@inlined
def _scale_of(blocks: Any, n: Any, group: Any) -> Any:
    """The six bits of a scale among the twelve bytes of scales and offsets."""
    if group < 4:
        return I32(blocks[n, 4 + group]) & 63
    return (I32(blocks[n, 8 + group]) & 15) | (I32(blocks[n, group]) >> 6) << 4


@inlined
def _offset_of(blocks: Any, n: Any, group: Any) -> Any:
    """The six bits of an offset among the twelve bytes of scales and offsets."""
    if group < 4:
        return I32(blocks[n, 8 + group]) & 63
    return (I32(blocks[n, 8 + group]) >> 4) | (I32(blocks[n, 4 + group]) >> 6) << 4


@compiled
def _q4_k(blocks: Any, scales: Any, out: Any) -> None:
    for n in range(blocks.shape[0]):
        for group in range(8):
            scale = scales[n, 0] * F32(_scale_of(blocks, n, group))
            least = scales[n, 1] * F32(_offset_of(blocks, n, group))
            at, shift = 16 + group // 2 * 32, group % 2 * 4
            for i in range(32):
                q = (I32(blocks[n, at + i]) >> shift) & 15
                out[n, group * 32 + i] = F32(scale * F32(q)) - least


@compiled
def _q5_k(blocks: Any, scales: Any, out: Any) -> None:
    for n in range(blocks.shape[0]):
        for group in range(8):
            scale = scales[n, 0] * F32(_scale_of(blocks, n, group))
            least = scales[n, 1] * F32(_offset_of(blocks, n, group))
            at, shift = 48 + group // 2 * 32, group % 2 * 4
            for i in range(32):
                q = (I32(blocks[n, at + i]) >> shift) & 15
                q |= (I32(blocks[n, 16 + i]) >> group & 1) << 4
                out[n, group * 32 + i] = F32(scale * F32(q)) - least


@compiled
def _q6_k(blocks: Any, scales: Any, out: Any) -> None:
    for n in range(blocks.shape[0]):
        for group in range(16):
            scale = scales[n, 0] * F32(I8(blocks[n, 192 + group]))
            # A half of 128 numbers has 64 bytes of low bits and 32 bytes of high ones.
            half, run, side = group // 8, group % 8 // 2, group % 2 * 16
            at, shift = half * 64 + run % 2 * 32 + side, run // 2 * 4
            high = 128 + half * 32 + side
            for i in range(16):
                q = (I32(blocks[n, at + i]) >> shift) & 15
                q |= (I32(blocks[n, high + i]) >> (run * 2) & 3) << 4
                out[n, group * 16 + i] = scale * F32(q - 32)


# By type: the function, and where in a block its float16 factors are.
_DECODERS = {
    "Q8_0": (_q8_0, (0,)),
    "Q4_0": (_q4_0, (0,)),
    "Q4_1": (_q4_1, (0, 2)),
    "Q5_0": (_q5_0, (0,)),
    "Q5_1": (_q5_1, (0, 2)),
    "Q2_K": (_q2_k, (80, 82)),
    "Q3_K": (_q3_k, (108,)),
    "Q4_K": (_q4_k, (0, 2)),
    "Q5_K": (_q5_k, (0, 2)),
    "Q6_K": (_q6_k, (208,)),
}


def decode(name: str, blocks: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
    """The numbers of whole blocks. ``name``: of the ggml type, such as "Q4_K"."""
    function, places = _DECODERS[name]
    factors = [np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2") for at in places]
    function(blocks, np.concatenate(factors, axis=1).astype(np.float32), out)
