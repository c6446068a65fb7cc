"""The one table of tensor dtypes: safetensors name, size, numpy view, what may be done with it.

numpy has no bfloat16 and numba has no float16 on the CPU, so both travel as their raw 16 bits.
They are told apart by signedness alone: BF16 is viewed as ``uint16`` and F16 as ``int16``, and the
kernels are specialised on that. Names are those of the safetensors format.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paramdelta.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class DType:
    """One safetensors dtype.

    ``bits``: size of one element in bits. ``view``: the numpy dtype under which the kernels see its
    bytes (little-endian). ``mixable``: a floating-point weight that the arithmetic covers.
    ``digits``: bits of precision with the hidden one (0 where nothing is ever rounded to it).
    """

    name: str
    bits: int
    view: str
    mixable: bool = False
    digits: int = 0

    @property
    def numpy(self) -> "np.dtype[np.generic]":
        """The numpy dtype of the view."""
        import numpy as np  # not at the top: --help must not wait for it

        return np.dtype(self.view)

    @property
    def size(self) -> int:
        """Bytes of one element; 0 for dtypes that pack several elements in a byte."""
        return self.bits // 8

    def nbytes(self, elements: int) -> int:
        """Bytes of this many elements, rounded up to whole bytes."""
        return -(-elements * self.bits // 8)


_TABLE = (
    DType("F64", 64, "<f8", mixable=True, digits=53),
    DType("F32", 32, "<f4", mixable=True, digits=24),
    DType("F16", 16, "<i2", mixable=True, digits=11),
    DType("BF16", 16, "<u2", mixable=True, digits=8),
    DType("I64", 64, "<i8"),
    DType("I32", 32, "<i4"),
    DType("I16", 16, "<i2"),
    DType("I8", 8, "|i1"),
    DType("U64", 64, "<u8"),
    DType("U32", 32, "<u4"),
    DType("U16", 16, "<u2"),
    DType("U8", 8, "|u1"),
    DType("BOOL", 8, "|u1"),
    DType("C64", 64, "<c8"),
    DType("F8_E5M2", 8, "|u1"),
    DType("F8_E4M3", 8, "|u1", digits=4),
    DType("F8_E5M2FNUZ", 8, "|u1"),
    DType("F8_E4M3FNUZ", 8, "|u1"),
    DType("F8_E8M0", 8, "|u1"),
    DType("F6_E2M3", 6, "|u1"),
    DType("F6_E3M2", 6, "|u1"),
    DType("F4", 4, "|u1"),
)

DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in _TABLE}

# Not a tensor's dtype but a way to write weights: codes in F8_E4M3, and beside them a float32 scale
# for each block of `FP8_SIDE` × `FP8_SIDE`, cut at the edges.
FP8_BLOCK = "fp8-block"
FP8_SIDE = 128

_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ALIASES = {torch: name for name, torch in _TORCH_NAMES.items()} | {
    "fp64": "F64",
    "fp32": "F32",
    "fp16": "F16",
    "bf16": "BF16",
    "half": "F16",
    "float": "F32",
    "double": "F64",
}


def torch_name(name: str) -> str:
    """The name that config.json uses for a mixable dtype: ``BF16`` -> ``bfloat16``."""
    return _TORCH_NAMES[name]


def parse_dtype(text: str) -> str | None:
    """The dtype of an output: None for ``auto``, else the safetensors name of a mixable dtype, or
    `FP8_BLOCK`.

    Accepts safetensors names (BF16), torch's (bfloat16, torch.bfloat16) and common short ones
    (bf16, fp32).

    Raises:
        UsageError: the text names no dtype that can be mixed.
    """
    wanted = text.strip().lower().removeprefix("torch.")
    if wanted == "auto":
        return None
    if wanted == FP8_BLOCK:
        return FP8_BLOCK
    for name, dtype in DTYPES.items():
        if dtype.mixable and wanted == name.lower():
            return name
    if wanted in _ALIASES:
        return _ALIASES[wanted]
    raise UsageError(
        f"unknown output dtype {text!r}",
        code="invalid-dtype",
        expected="auto, " + ", ".join((*sorted(_TORCH_NAMES.values()), FP8_BLOCK)),
        remedy="mix in floating point, and quantize the output with a quantizer"
        if re.match(r"u?int|q\d|nf4|fp4|awq|gptq|[48]bit", wanted)
        else did_you_mean(wanted, (*_ALIASES, *_TORCH_NAMES.values(), FP8_BLOCK)),
    )
