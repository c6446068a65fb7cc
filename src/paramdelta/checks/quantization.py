"""What a folder says about its quantization, compared with the weights that it stores.

Where loaders look for a statement: transformers in ``quantization_config`` of config.json; vLLM
there, then in ``text_config.quantization_config``, then in ``compression_config``, and for ModelOpt
in hf_quant_config.json; SGLang as vLLM; MLX in ``quantization``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta.checks.folder import Folder
from paramdelta.checks.weights import Stored
from paramdelta.formats.codes import Coded
from paramdelta.planning.findings import Findings, Severity

FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
NESTED = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")


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
