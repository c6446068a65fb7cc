"""Which tensors belong to each preset of `recipe.schedule`, by name and number of axes.

The names are those that the common families give to the parts of a model (Llama, Qwen, Mixtral,
GPT-2, BERT, T5 and their like); the tests hold each preset against lists of real names.
"""

import re

# Where a tensor lies in the model. The first layer number counts: T5 has `block.3.layer.0`.
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block|resblocks)\.(\d+)(?=\.|$)")

_BIAS = re.compile(r"(^|[._])bias$")
_NORM = re.compile(r"(^|\.)(\w*norm\w*|ln(_\w+|\d+)?)(\.|$)", re.IGNORECASE)
# Norms of the attention's own vectors, not of the residual stream.
_INNER_NORM = re.compile(r"(^|\.)(q|k|v|kv|query|key)_(a_|b_)?(norm|layernorm)(\.|$)")
_EMBEDDING = re.compile(
    r"(^|\.)(wte|wpe|shared|cls_token|\w*embed|\w*embed_(in|tokens|positions|tokens_per_layer)|"
    r"\w*embeddings?)(\.|$)"
)
_HEAD = re.compile(
    r"(^|\.)(lm_head|embed_out|proj_out|score|classifier|qa_outputs)(\.|$)|"
    r"(^|\.)cls\.(predictions\.(decoder|bias)|seq_relationship)(\.|$)|^output\."
)
_ATTENTION = re.compile(r"(^|\.)\w*(attn|attention)\w*\.", re.IGNORECASE)
_EXPERTS = re.compile(r"(^|\.)experts\.")
_MLP = re.compile(
    r"(^|\.)(mlp|feed_?forward|ffn|ff|DenseReluDense|block_sparse_moe|moe|fc1|fc2|"
    r"shared_experts?|experts)\.|"
    r"(^|\.)layer\.\d+\.(intermediate|output)\.dense\."  # BERT
)
# Matrices by their shape, but not of a linear layer: a table of positions, Mamba's A.
_TABLE = re.compile(r"(^|\.)(\w*position\w*|\w*relative_attention_bias\w*|A_log)(\.|$)")


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to; None if it is in no layer."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def stack_of(name: str) -> str | None:
    """The stack of layers that a tensor belongs to: its name before the layer number."""
    found = _LAYER.search(name)
    return name[: found.start(1)] if found else None


def is_head(name: str) -> bool:
    """Whether a tensor is of a model's head, outside of all layers."""
    return layer_of(name) is None and bool(_HEAD.search(name))


def is_of(preset: str, name: str, axes: int) -> bool:
    """Whether a tensor with this name and number of axes belongs to a preset."""
    outside = layer_of(name) is None
    norm = bool(_NORM.search(name)) and not _INNER_NORM.search(name)
    ends = outside and not norm and bool(_EMBEDDING.search(name) or _HEAD.search(name))
    if preset == "skip-embeddings":
        # A norm that stands among the embeddings (BERT's) is none of them.
        return not ends
    if preset == "experts-only":
        return bool(_EXPERTS.search(name))
    if preset == "attention-only":
        return bool(_ATTENTION.search(name)) and not norm
    if preset == "mlp-only":
        return bool(_MLP.search(name)) and not norm
    if preset == "linear-only":
        matrix = axes == 2 or (axes == 3 and bool(_EXPERTS.search(name)))
        special = ends or norm or _BIAS.search(name) or _TABLE.search(name)
        return matrix and not special
    raise AssertionError(preset)
