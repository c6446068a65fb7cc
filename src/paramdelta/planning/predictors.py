"""Layers that predict further tokens (multi-token prediction, MTP), for speculative decoding.

A model generates the same without them, and many tools lose them: transformers does not load them.
They are named ``mtp.…``, or are layers beyond the last one: DeepSeek-V3, GLM-4.5, Qwen3-Next, MiMo.
"""

import re
from collections.abc import Mapping
from typing import Any

from paramdelta.planning.facts import parts

KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "mtp_num_layers")
"""Keys of config.json that state how many there are."""

_NAMED = re.compile(r"(^|\.)mtp(_layers|_block)?\.")
_LAYER = re.compile(r"(^|\.)layers\.(\d{1,6})\.")


def stated_layers(config: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Where config.json states that there are such layers: the keys that lead to it."""
    return [
        (*keys, key)
        for keys, part in parts(config, "text")
        for key in KEYS
        if isinstance(part.get(key), int) and part[key] > 0
    ]


def is_predictor(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor belongs to such a layer. ``config``: of a checkpoint that has them."""
    if not stated_layers(config):
        return False
    if _NAMED.search(name):
        return True
    match = _LAYER.search(name)
    counts = [part.get("num_hidden_layers") for _, part in parts(config, "text")]
    known = [count for count in counts if isinstance(count, int)]
    return match is not None and bool(known) and int(match[2]) >= known[-1]
