"""Constants that checkpoints store beside the weights: positions, masks, counters."""

import re

from paramdelta.formats.view import View

# Constants that some libraries store beside the weights. They are copied, never scaled.
_CONSTANTS = {
    *("position_ids", "token_type_ids", "inv_freq", "original_inv_freq", "cos_cached"),
    *("sin_cached", "masked_bias", "causal_mask", "attn_mask", "tril", "mask"),
    *("num_batches_tracked", "relative_position_index"),
}
_ROTARY = re.compile(r"(^|\.)rotary(_pos)?_emb\.")
# Words in the names of tables that a module of rotary positions computes; some have trained
# parameters beside them.
_TABLES = {"freq", "freqs", "cos", "sin", "cached"}
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")


def is_buffer(tensor: View) -> bool:
    """Whether a tensor is a constant and not a weight, by its name.

    ``attn.bias`` is GPT-2's causal mask where it is square over its last two axes, and the bias of
    a projection elsewhere.
    """
    name = tensor.name  # asked of every tensor: no further calls for most
    if name.endswith("bias") and _MASK.search(name):
        return len(tensor.shape) >= 2 and tensor.shape[-1] == tensor.shape[-2]
    if "rotary" in name:
        return is_constant(name)
    return name[name.rfind(".") + 1 :] in _CONSTANTS


def is_constant(name: str) -> bool:
    """Whether a name is that of a constant whatever its shape."""
    last = name[name.rfind(".") + 1 :]
    if last in _CONSTANTS:
        return True
    if "rotary" not in name or not _ROTARY.search(name):
        return False
    return not _TABLES.isdisjoint(last.split("_"))
