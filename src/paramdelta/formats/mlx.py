"""A LoRA adapter as MLX-LM writes it.

The Δ of a linear layer is ``scale · (a @ b)ᵀ`` with ``lora_a`` (in, r) and ``lora_b`` (r, out),
that of an embedding ``scale · a @ b``. With DoRA, ``m`` has the trained length of each line.

Source: mlx-lm 0.28, ``tuner/lora.py``, ``tuner/dora.py`` and ``tuner/utils.py``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta.errors import CheckpointError
from paramdelta.formats.checkpoint import Checkpoint, read_weights
from paramdelta.formats.lowrank import LowRank, turned
from paramdelta.formats.view import View
from paramdelta.storage.files import Files

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<factor>lora_a|lora_b|m)")
_FUSE = "fuse it with MLX-LM (mlx_lm.fuse) and pass the fused folder as post"


@dataclass(frozen=True)
class MlxAdapter:
    """An opened adapter; see `adapter.Adapter`. ``whole``: tensors that were trained whole."""

    checkpoint: Checkpoint
    base: str | None
    deltas: Mapping[str, View]
    whole: Mapping[str, View]
    magnitudes: Mapping[str, View]


def is_mlx(config: Mapping[str, Any]) -> bool:
    """Whether adapter_config.json is one of MLX-LM and not of PEFT."""
    return "peft_type" not in config and not {"fine_tune_type", "lora_parameters"}.isdisjoint(
        config
    )


def open_mlx(files: Files, role: str) -> MlxAdapter:
    """Read an adapter of MLX-LM.

    Raises:
        CheckpointError: not complete, or not a change of weights that is known here.
        StorageError: a file cannot be read.
    """
    config, where = files.json(CONFIG), str(files[CONFIG])
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        raise _unsupported("fine_tune_type is not known", where, repr(kind)[:80])
    if WEIGHTS not in files:
        raise CheckpointError(
            "the adapter has no weights",
            code="adapter-without-weights",
            where=files.location.url,
            expected=WEIGHTS,
            remedy="finish the download",
        )
    blob = files[WEIGHTS]
    source, found, _ = read_weights(files.reader, blob)
    tensors = {tensor.name: tensor for tensor in found}
    checkpoint = Checkpoint(
        role, files.location, tensors, (source,), files, files.json("config.json")
    )
    factors: dict[str, dict[str, View]] = {}
    whole: dict[str, View] = {}
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name) if kind != "full" else None
        if match:
            factors.setdefault(match["module"], {})[match["factor"]] = tensor
        else:
            whole[name] = tensor
    if not tensors:
        raise CheckpointError(
            "the adapter is empty",
            code="adapter-without-weights",
            where=str(blob),
            expected="lora_a and lora_b of at least one layer",
        )
    expected = {"lora_a", "lora_b"} | ({"m"} if kind == "dora" else set())
    deltas, magnitudes = {}, {}
    for module, pair in factors.items():
        name = f"{module}.weight"
        if pair.keys() != expected:
            raise _unsupported("a pair of factors is not whole", f"{blob}, module {module!r}")
        deltas[name] = _delta(
            name, pair["lora_a"], pair["lora_b"], _scale(config, where), str(blob)
        )
        if kind == "dora":
            magnitudes[name] = pair["m"]
    base = config.get("model")
    known = base if isinstance(base, str) and base.isprintable() and base else None
    return MlxAdapter(checkpoint, known, deltas, whole, magnitudes)


def _scale(config: Mapping[str, Any], where: str) -> float:
    """What products are multiplied by: ``scale``, or ``alpha / rank`` as older releases say it."""
    said = config.get("lora_parameters")
    said = said if isinstance(said, Mapping) else {}
    scale: Any = said.get("scale")
    alpha: Any = said.get("alpha")
    rank: Any = said.get("rank")
    if "scale" not in said and type(rank) is int and rank > 0 and type(alpha) in (int, float):
        scale = alpha / rank
    if type(scale) not in (int, float) or not abs(scale) < 1e30:
        raise _unsupported("lora_parameters has no scale", where, repr(scale)[:80])
    return float(scale)


def _delta(name: str, a: View, b: View, scale: float, where: str) -> LowRank:
    """The Δ of a linear layer: (out, in). `Adapter.oriented` turns that of an embedding."""
    plain = a.kind.mixable and b.kind.mixable and a.elements > 0 < b.elements
    if not plain or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        got = f"lora_a {a.dtype} {list(a.shape)} and lora_b {b.dtype} {list(b.shape)}"
        raise _unsupported("factors that are no matrices", f"{where}, tensor {name!r}", got)
    return LowRank(name, "F64", (b.shape[1], a.shape[0]), turned(b), turned(a), scale)


def _unsupported(what: str, where: str, got: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"an adapter of MLX-LM that is not read: {what}",
        code="unsupported-adapter",
        where=where,
        got=got,
        remedy=_FUSE,
    )
