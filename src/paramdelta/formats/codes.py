"""Quantized weights, recognized by what is stored: names and dtypes together.

Every format keeps codes beside scales. `read_codes` finds them whatever config.json says. Sources:
the checkpoints and loaders of GPTQ, AWQ, MLX, compressed-tensors, ModelOpt, bitsandbytes and MXFP4.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_NARROW = (*FLOAT8, "I8", "U8", "I32", "U32", "F4")


class Header(Protocol):
    """What is known of a stored tensor: safetensors dtype and shape."""

    @property
    def dtype(self) -> str:
        """Of the format: "I32"."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""


@dataclass(frozen=True)
class Coded:
    """One quantized weight.

    ``format``: fp8, gptq, awq, mlx, compressed-tensors, modelopt, bitsandbytes, mxfp4 or int8.
    ``weight``: the name of the plain weight that it stands for. ``shape``: of that weight; None if
    the headers do not tell. ``parts``: the names of the stored tensors.
    """

    format: str
    weight: str
    shape: tuple[int, ...] | None
    parts: tuple[str, ...]


# Codes end in the first; a weight of this format also has all of the second, and any of the third.
_SUFFIXES = (
    ("compressed-tensors", "weight_packed", ("weight_scale",), ()),
    ("gptq", "qweight", ("qzeros", "scales", "g_idx"), ()),
    ("awq", "qweight", ("qzeros", "scales"), ()),
    ("mxfp4", "_blocks", ("_scales",), ()),
    ("modelopt", "weight", ("weight_scale", "weight_scale_2"), ("input_scale",)),
    ("bitsandbytes", "weight", ("SCB",), ("weight_format",)),
    ("bitsandbytes", "weight", ("weight.absmax",), ()),
    ("mlx", "weight", ("scales",), ("biases",)),
    ("fp8", "weight", ("weight_scale_inv",), ()),
    ("fp8", "weight", ("weight_scale",), ("input_scale",)),
    ("fp8", "weight", ("scale",), ("input_scale",)),
)
_EXTRA = (
    "weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale", "biases",
    "input_global_scale", "input_scale", "output_scale", "weight_format", "weight.quant_map",
    "weight.nested_absmax", "weight.nested_quant_map", "activation_scale", "input_zero_point",
)  # fmt: skip
_SCALES = re.compile(
    r"(weight_scale(_inv|_2)?|(input|activation)_scale|weight\.absmax|\.SCB|\.qzeros)$"
)
# Scales of the cache of keys and values, which weights of any kind may have beside them.
_CACHE = re.compile(r"(\.[kqv]_scale|_proj\.output_scale|\.kv_scale)$")


def read_codes(
    tensors: Mapping[str, Header], bits: int | None = None, group: int | None = None
) -> list[Coded]:
    """The quantized weights among the stored tensors.

    ``bits``, ``group``: as the configuration says, for formats whose headers leave them open.
    """
    states: dict[str, list[str]] = {}
    for name in tensors:
        if ".quant_state.bitsandbytes__" in name:
            states.setdefault(name.split(".quant_state.")[0], []).append(name)
    found = []
    for name, tensor in tensors.items():
        if tensor.dtype not in _NARROW:
            continue
        for kind, suffix, needed, optional in _SUFFIXES:
            if not name.endswith(suffix):
                continue
            stem = name[: -len(suffix)]
            if not all(stem + part in tensors for part in needed):
                continue
            if kind == "mlx" and tensor.dtype != "U32":
                continue
            if kind == "fp8" and tensor.dtype not in FLOAT8:
                kind = "compressed-tensors" if tensor.dtype in ("I8", "U8") else kind
            extra = (*needed, *optional, *_EXTRA)
            parts = [stem + part for part in extra if stem + part in tensors]
            parts += states.get(name, [])
            weight = stem.rstrip("_") if kind == "mxfp4" else stem + "weight"
            shape = _shape(kind, tensor, stem, tensors, bits, group)
            found.append(Coded(kind, weight, shape, (name, *dict.fromkeys(parts))))
            break
        else:
            if tensor.dtype in FLOAT8 and len(tensor.shape) > 1 and not is_scale(name):
                found.append(Coded("fp8", name, tensor.shape, (name,)))
    return found


def _shape(
    kind: str,
    codes: Header,
    stem: str,
    tensors: Mapping[str, Header],
    bits: int | None,
    group: int | None,
) -> tuple[int, ...] | None:
    """The shape of the weight that codes stand for."""
    if codes.dtype in FLOAT8 or codes.dtype == "I8":
        return codes.shape
    if kind == "mxfp4" and len(codes.shape) == 4:
        experts, rows, groups, half = codes.shape
        return (experts, groups * half * 2, rows)
    if len(codes.shape) != 2:
        return None
    rows, columns = codes.shape
    if kind == "gptq" and bits:
        return (columns, rows * 32 // bits)
    if kind == "awq" and bits:
        return (columns * 32 // bits, rows)
    if kind in ("mlx", "compressed-tensors") and bits and codes.dtype in ("I32", "U32"):
        return (rows, columns * 32 // bits)
    if kind == "modelopt":
        return (rows, columns * 2)
    if kind == "mlx" and group and len(tensors[stem + "scales"].shape) == 2:
        return (rows, tensors[stem + "scales"].shape[1] * group)
    return None


def plain_shapes(
    tensors: Mapping[str, Header], codes: list[Coded]
) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """Names, dtypes and shapes as they would be without quantization.

    None if the shape of some weight cannot be told from the headers.
    """
    parts = {part for coded in codes for part in coded.parts}
    stems = {coded.weight.removesuffix("weight") for coded in codes}
    plain = {
        name: (tensor.dtype, tensor.shape)
        for name, tensor in tensors.items()
        if name not in parts and not (codes and _CACHE.search(name))
    }
    for coded in codes:
        if coded.shape is None:
            return None
        plain[coded.weight] = ("BF16", coded.shape)
    if any(coded.format == "gptq" for coded in codes):
        # GPTQ tools write a bias of zeros beside weights that have none; loaders ignore it.
        for stem in stems:
            plain.pop(stem + "bias", None)
    return plain


def is_scale(name: str) -> bool:
    """Whether a name is one that only scales of quantized weights have."""
    return bool(_SCALES.search(name))


def positive_scales(codes: list[Coded]) -> frozenset[str]:
    """The names of scales that cannot be negative; MLX has some that can."""
    return frozenset(
        part
        for coded in codes
        for part in coded.parts[1:]
        if coded.format != "mlx" and re.search(r"(scale(_inv|_2)?|scales|absmax|SCB)$", part)
    )
