"""What part of its layer a tensor is, by its name: q, k, v, o, gate, up, down, experts, …

The names are those of the common families (Llama, Qwen, Mixtral, DeepSeek, GPT-2, GPT-NeoX, BERT,
T5, OPT, Phi and their like); the tests hold them against lists of real names.
"""

import re

from paramdelta.planning.presets import is_head, is_of, layer_of

KINDS = (
    "embedding", "q", "k", "v", "qkv", "o", "gate", "up", "down", "experts", "router", "norm",
    "bias", "head", "other",
)  # fmt: skip
"""Every kind, in the order of a model's computation."""

_ATTENTION = re.compile(r"(^|[._])(\w*(attn|attention|heads)\w*|sa)(\.|$)", re.IGNORECASE)
_TABLE = re.compile(r"(^|[._])\w*embed\w*(\.|$)", re.IGNORECASE)
_EXPERTS = re.compile(r"(^|\.)experts?\.|(^|\.)shared_experts?\.")
_ROUTER = re.compile(
    r"(^|\.)(router|shared_expert_gate|gate\.wg)(\.|$)|\.(\w*moe|mlp|feed_forward)\.gate\."
)
_NORM = re.compile(r"(^|[._])(\w*norm\w*|ln(_\w+|\d+)?)(\.|$)", re.IGNORECASE)
_LAST = {
    "qkv": r"qkv(_proj)?|c_attn|query_key_value|Wqkv|in_proj(_weight)?|kv_a_proj_with_mqa|"
    r"kv_b_proj|kv_proj|to_kv",
    "q": r"q|q_proj|query|wq|to_q|q_lin|q_a_proj|q_b_proj|query_proj",
    "k": r"k|k_proj|key|wk|to_k|k_lin|key_proj",
    "v": r"v|v_proj|value|wv|to_v|v_lin|value_proj",
    "gate": r"gate|gate_proj|w1|wi_0|gate_up_proj|linear_v",
    "up": r"up|up_proj|w3|wi|wi_1|fc1|c_fc|dense_h_to_4h|lin1|fc_in|linear_1",
    "down": r"down|down_proj|w2|fc2|dense_4h_to_h|lin2|fc_out|linear_2",
}
_OUT = r"o|o_proj|out_proj|wo|out_lin|dense|c_proj|to_out|proj|final_proj"


def kind_of(name: str, axes: int) -> str:
    """One of `KINDS`. ``axes``: how many the tensor has."""
    parts = name.split(".")
    if parts[-1] == "bias" or parts[-1].endswith("_bias"):
        return "norm" if _is_norm(name) else "bias"
    if _is_norm(name):
        return "norm"
    if not is_of("skip-embeddings", name, axes):
        return "head" if is_head(name) else "embedding"
    if _ROUTER.search(name):
        return "router"
    if _EXPERTS.search(name):
        return "experts"
    if layer_of(name) is None and _TABLE.search(name):
        return "embedding"
    return _of_layer(parts, bool(_ATTENTION.search(name)))


def _is_norm(name: str) -> bool:
    return bool(_NORM.search(name))


def _of_layer(parts: list[str], attention: bool) -> str:
    """A weight of attention or MLP, by the last parts of its name."""
    own = [part for part in parts if part != "weight" and not part.isdigit()]
    last = own[-1] if own else ""
    if last == "wo" and not attention and "DenseReluDense" in parts:  # T5
        return "down"
    if last == "dense" and not attention:  # BERT
        return "up" if own[-2:-1] == ["intermediate"] else "down" if "output" in own else "other"
    if last == "c_proj" and not attention:  # GPT-2
        return "down"
    for kind, pattern in _LAST.items():
        if re.fullmatch(pattern, last) and (attention or kind not in ("q", "k", "v", "qkv")):
            return kind
    if re.fullmatch(_OUT, last) and (attention or last == "wo"):
        return "o"
    return "other"
