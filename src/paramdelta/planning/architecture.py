"""Compares what config.json says about the meaning of the weights: heads, sizes, positions."""

from collections.abc import Mapping
from typing import Any

from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.planning.findings import Findings, Severity

_MEANING = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "partial_rotary_factor",
)
_POSITIONS = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "max_position_embeddings",
    "sliding_window",
)


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a multimodal config.json that describes the text model; else all of it."""
    part = config.get("text_config")
    return part if isinstance(part, Mapping) and "model_type" in part else config


def compare_architecture(new: Checkpoint, source: Checkpoint, findings: Findings) -> None:
    """Refuse weights with another meaning; note that positions follow the new base.

    A text model beside a multimodal one is compared with the text part of that one.
    """
    if not source.config or not new.config:
        return
    ours, theirs = new.config, source.config
    if ours.get("model_type") != theirs.get("model_type"):
        ours, theirs = text_part(ours), text_part(theirs)
    for key in _MEANING:
        old, now = theirs.get(key), ours.get(key)
        if old != now and None not in (old, now):
            findings.add(
                Severity.REFUSED,
                "architecture-differs",
                f"config.json says {key}: {old!r}, the new base {now!r}",
                source,
                remedy="check that it is the right checkpoint",
                allowed="mixed anyway, as weights of the new base's architecture",
            )
    different = [key for key in _POSITIONS if theirs.get(key) != ours.get(key)]
    if different and source.role.startswith("post"):
        shown = "; ".join(f"{k}: {theirs.get(k)!r} -> {ours.get(k)!r}" for k in different)
        findings.add(
            Severity.NOTE,
            "positions",
            f"positions and context length follow the new base ({shown})",
            source,
        )
