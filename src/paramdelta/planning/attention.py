"""Which rows or columns of an attention's weights belong to which head, by config.json."""

from collections.abc import Iterator, Mapping
from typing import Any


def head_size(config: Mapping[str, Any], kind: str, shape: tuple[int, ...]) -> int | None:
    """How many rows (of q, k and v) or columns (of o) a head has; None if config does not tell.

    ``kind``: see `kinds`. The sections of config are tried one after the other; one counts if its
    numbers fit the shape.
    """
    if kind not in ("q", "k", "v", "o") or len(shape) != 2:
        return None
    length = shape[1] if kind == "o" else shape[0]
    for section in _sections(config):
        heads = _number(section, "num_attention_heads", "n_head", "num_heads", "n_heads")
        if heads is None:
            continue
        width = _number(section, "hidden_size", "d_model", "n_embd")
        size = _number(section, "head_dim", "d_kv") or (width // heads if width else None)
        few = _number(section, "num_key_value_heads", "n_kv_heads") or heads
        count = few if kind in ("k", "v") else heads
        if size and count > 1 and count * size == length:
            return size
    return None


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    for value in config.values():
        if isinstance(value, Mapping):
            yield value


def _number(section: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = section.get(key)
        if type(value) is int and value > 0:
            return value
    return None
