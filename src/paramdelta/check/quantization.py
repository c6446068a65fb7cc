"""Quantized weights, recognized by what is stored: names and dtypes together.

Every format keeps codes beside scales. `read_codes` finds them whatever config.json says;
`check_quantization` compares that with what the configuration says.

Where loaders look for a statement: transformers in ``quantization_config`` of config.json; vLLM
there, then in ``text_config.quantization_config``, then in ``compression_config``, and for ModelOpt
in hf_quant_config.json; SGLang as vLLM; MLX in ``quantization``.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta.check.folder import Folder
from paramdelta.check.weights import Stored
from paramdelta.planning.findings import Findings, Severity

FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_NARROW = (*FLOAT8, "I8", "U8", "I32", "U32", "F4")
FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
NESTED = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")


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


@dataclass(frozen=True)
class Statement:
    """One ``place`` that says how the weights are quantized: ``method``, all its ``content``."""

    place: str
    method: str
    content: Mapping[str, Any]

    @property
    def file(self) -> str:
        """The file that it stands in."""
        return self.place.partition(",")[0]

    @property
    def read_by_all(self) -> bool:
        """Whether transformers and vLLM look there."""
        return self.place == "config.json, quantization_config"

    @property
    def read_by_some(self) -> bool:
        """Whether some loader of today looks there."""
        return self.file in ("config.json", "hf_quant_config.json")


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
    tensors: Mapping[str, Stored], bits: int | None = None, group: int | None = None
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
    codes: Stored,
    stem: str,
    tensors: Mapping[str, Stored],
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
    tensors: Mapping[str, Stored], codes: list[Coded]
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


def statements(
    config: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]
) -> Iterator[Statement]:
    """All places that say how the weights are quantized. ``files``: those of `FILES` that exist."""
    for key in ("quantization_config", "compression_config", "quantization"):
        yield from _statement(f"config.json, {key}", config.get(key), key)
    for part in NESTED:
        inner = config.get(part)
        if isinstance(inner, Mapping):
            for key in ("quantization_config", "compression_config"):
                yield from _statement(f"config.json, {part}.{key}", inner.get(key), key)
    for name, content in files.items():
        yield from _statement(name, content, name)


def _statement(place: str, content: Any, key: str) -> Iterator[Statement]:
    if not isinstance(content, Mapping) or not content:
        return
    inner = content.get("quantization")
    modelopt = content.get("producer")
    method = content.get("quant_method")
    if key == "quantization" and not isinstance(method, str):
        method = "mlx"
    elif isinstance(modelopt, Mapping) or key == "hf_quant_config.json":
        method = "modelopt"
        content = inner if isinstance(inner, Mapping) else content
    elif key == "quantize_config.json" and not isinstance(method, str):
        method = "gptq"
    elif key == "quant_config.json" and not isinstance(method, str):
        method = "awq"
    elif not isinstance(method, str):
        # MLX writes its own settings under the key of transformers too.
        method = "mlx" if {"bits", "group_size"} <= content.keys() else "unknown"
    yield Statement(place, method.lower().replace("_", "-"), content)


# Which formats of `read_codes` a stated method may have. A method that is not here may have any.
_FORMATS = {
    "fp8": ("fp8",),
    "finegrained-fp8": ("fp8",),
    "fbgemm-fp8": ("fp8",),
    "gptq": ("gptq",),
    "awq": ("awq",),
    "mlx": ("mlx",),
    "mxfp4": ("mxfp4",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors", "fp8", "modelopt"),
    "modelopt": ("modelopt", "fp8", "compressed-tensors", "awq"),
}
# Methods whose loaders quantize plain weights while loading: the codes need not be there.
_ON_LOAD = {"bitsandbytes", "quanto", "torchao", "hqq", "eetq", "fbgemm-fp8", "unknown"}


def check_quantization(
    said: list[Statement], codes: list[Coded], tensors: Mapping[str, Stored], findings: Findings,
    folder: Folder,
) -> None:  # fmt: skip
    """Compare what is stated with what is stored."""
    place = folder.place("config.json")
    methods = {statement.method for statement in said}
    formats = {coded.format for coded in codes}
    if codes and not any(statement.read_by_all for statement in said):
        somewhere = [s.place for s in said if s.read_by_some]
        for coded in codes:
            findings.add(
                Severity.WARNING if somewhere else Severity.REFUSED,
                "quantization-unstated",
                f"the weights are quantized ({', '.join(sorted(formats))}), and config.json has "
                "no quantization_config at its top"
                + (f" (only {somewhere[0]}, which not all loaders read)" if somewhere else "")
                + ": transformers takes codes for weights, or leaves them out",
                place,
                tensor=coded.parts[0],
                remedy="add the quantization_config, or use the weights before quantization",
            )
    for statement in said:
        if not codes and tensors and statement.method not in _ON_LOAD:
            findings.add(
                Severity.REFUSED,
                "quantization-untrue",
                f"{statement.place} says {statement.method}, and no weight is quantized",
                folder.place(statement.file),
                remedy="remove the statement"
                + (" and the file" if statement.place.endswith(".json") else ""),
            )
        allowed = _FORMATS.get(statement.method)
        if codes and allowed and not formats & set(allowed):
            findings.add(
                Severity.REFUSED,
                "quantization-untrue",
                f"{statement.place} says {statement.method}, and the weights are stored as "
                + ", ".join(sorted(formats)),
                folder.place(statement.file),
                remedy="say what the weights are",
            )
    if len(methods) > 1 and codes and not _compatible(methods):
        findings.add(
            Severity.WARNING,
            "quantization-disagrees",
            "places that say how the weights are quantized differ: "
            + ", ".join(f"{s.place}: {s.method}" for s in said),
            place,
            remedy="keep one statement; transformers reads quantization_config of config.json",
        )
    for coded in codes:
        if said and len(coded.parts) == 1:
            findings.add(
                Severity.REFUSED,
                "scale-missing",
                "FP8 codes without the scales that the configuration promises",
                place,
                tensor=coded.parts[0],
                remedy="copy the scales with the codes",
            )


def _compatible(methods: set[str]) -> bool:
    """MLX and ModelOpt state the same twice, under two names."""
    return methods <= {"modelopt", "fp8", "compressed-tensors"} or methods <= {"mlx", "unknown"}


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


def stated_bits(said: list[Statement]) -> tuple[int | None, int | None]:
    """Bits of a code and weights of a group, where some statement gives them."""
    bits = group = None
    for statement in said:
        content = statement.content
        bits = bits or _integer(content.get("bits", content.get("w_bit")))
        group = group or _integer(content.get("group_size", content.get("q_group_size")))
        groups = content.get("config_groups")
        for each in groups.values() if isinstance(groups, Mapping) else ():
            weights = each.get("weights") if isinstance(each, Mapping) else None
            if isinstance(weights, Mapping):
                bits = bits or _integer(weights.get("num_bits"))
    return bits, group


def _integer(value: Any) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1024
    return value if good else None
