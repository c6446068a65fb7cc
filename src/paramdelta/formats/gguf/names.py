"""Tensors of GGUF files under the names, and in the layout, of Hugging Face checkpoints.

llama.cpp's converter renames every tensor and changes two kinds: in the Llama family it reorders
the rows of query and key, so that the two halves of each rotated pair lie side by side; to the
norms of Gemma it adds one. Both are undone. Sources: gguf-py's tensor_mapping.py, and
``LlamaModel.permute`` and ``GemmaModel.modify_tensors`` of convert_hf_to_gguf.py.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from paramdelta.errors import CheckpointError
from paramdelta.formats.gguf.views import MinusOne
from paramdelta.formats.view import Rows, View
from paramdelta.text import shown

_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.([a-z_]+)\.(weight|bias)")
_TOP = re.compile(r"([a-z_]+)\.(weight|bias)")
# Computed from the configuration: factors of rotary positions.
_BUFFERS = re.compile(r"(blk\.\d+\.)?rope_(freqs|factors_long|factors_short)\.weight")
_EXPERTS = re.compile(r"blk\.\d+\.ffn_[a-z_]*(exps?|shexp|inp)(\.\d+)?\..*")

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_COMMON = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_JOINED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_SEPARATE = ("attn_q", "attn_k", "attn_v", "ffn_gate")


@dataclass(frozen=True)
class Architecture:
    """How a model of one architecture is stored.

    ``model_type``: of config.json; None where several share the architecture. ``names``: of the
    tensors of a layer. ``is_rotated``: the rows of query and key are reordered. ``is_shifted``:
    norms are stored plus one.
    """

    model_type: str | None
    names: Mapping[str, str]
    is_rotated: bool = False
    is_shifted: bool = False


ARCHITECTURES = {
    "llama": Architecture(None, _COMMON, is_rotated=True),  # Llama, Mistral, SmolLM 1 and 2, Yi
    "qwen2": Architecture("qwen2", _COMMON),
    "qwen3": Architecture("qwen3", {**_COMMON, **_HEAD_NORMS}),
    "gemma": Architecture("gemma", _COMMON, is_shifted=True),
    "gemma2": Architecture("gemma2", {**_COMMON, **_FOUR_NORMS}, is_shifted=True),
    "gemma3": Architecture(
        "gemma3_text", {**_COMMON, **_FOUR_NORMS, **_HEAD_NORMS}, is_shifted=True
    ),
    "phi3": Architecture(
        "phi3",
        {gguf: name for gguf, name in {**_COMMON, **_JOINED}.items() if gguf not in _SEPARATE},
    ),
}
"""By the value of ``general.architecture``."""


def architecture_of(metadata: Mapping[str, Any], where: str) -> Architecture:
    """How the tensors of a file are stored; raises CheckpointError if that is not known."""
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise CheckpointError(
            f"this GGUF file does not hold a whole model: its general.type is {shown(str(kind))}",
            code="gguf-architecture",
            where=where,
            expected="general.type: model",
            remedy="use the safetensors release" + (" of the adapter" if kind == "adapter" else ""),
        )
    name = metadata.get("general.architecture")
    found = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if found is None or metadata.get(f"{name}.expert_count"):
        experts = " with experts" if found is not None else ""
        raise CheckpointError(
            f"a GGUF file of the architecture {shown(str(name))}{experts} cannot be read"
            if name is not None
            else "a GGUF file that does not state its architecture cannot be read",
            code="gguf-architecture",
            where=where,
            expected="one of " + ", ".join(ARCHITECTURES) + ", without experts",
            remedy="use the model's safetensors release, or convert the file with transformers: "
            "from_pretrained(FOLDER, gguf_file=FILE), then save_pretrained",
        )
    return found


def renamed(
    views: Iterable[View], kind: Architecture, heads: int, key_heads: int, where: str
) -> dict[str, View]:
    """The tensors of a file by their names in Hugging Face checkpoints, in that layout.

    ``views``: under the names in the file. ``heads``: of query. ``key_heads``: of key and value.
    Factors of rotary positions are left out: the configuration says what they are.

    Raises:
        CheckpointError: a tensor of another architecture, or one that the heads do not divide.
    """
    result: dict[str, View] = {}
    for view in views:
        if _BUFFERS.fullmatch(view.name):
            continue
        name = _name(view.name, kind, where)
        found: View = replace(view, name=name)
        if kind.is_shifted and name.endswith("norm.weight"):
            if view.dtype != "F32" or view.is_quantized:
                raise _misfit(view, "a norm in F32", view.dtype, where)
            found = MinusOne(name, "F32", view.shape, found)
        if kind.is_rotated and ".self_attn.q_proj." in name:
            found = unrotated(found, heads, where)
        if kind.is_rotated and ".self_attn.k_proj." in name:
            found = unrotated(found, key_heads, where)
        result[name] = found
    return result


def _name(name: str, kind: Architecture, where: str) -> str:
    if (match := _BLOCK.fullmatch(name)) and match[2] in kind.names:
        return f"model.layers.{match[1]}.{kind.names[match[2]]}.{match[3]}"
    if (match := _TOP.fullmatch(name)) and match[1] in _OUTSIDE:
        return f"{_OUTSIDE[match[1]]}.{match[2]}"
    what = "is of a mixture of experts" if _EXPERTS.fullmatch(name) else "is not known"
    raise CheckpointError(
        f"tensor {shown(name)} of a GGUF file {what}",
        code="gguf-tensor",
        where=where,
        expected="the tensors of a dense " + (kind.model_type or "llama or mistral") + " model",
        remedy="use the model's safetensors release",
    )


def unrotated(view: View, heads: int, where: str) -> View:
    """The rows of query or key in the order of Hugging Face: of each head the first halves of all
    rotated pairs, then the second ones. The file has the two halves of a pair side by side.
    """
    import numpy as np

    rows = view.shape[0]
    if heads < 1 or rows % (2 * heads):
        raise _misfit(view, f"{heads} heads of equally many pairs", f"{rows} rows", where)
    order = np.arange(rows, dtype=np.int32).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    return Rows(view.name, view.dtype, view.shape, (view,), order.tobytes())


def _misfit(view: View, expected: str, got: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"tensor {shown(view.name)} does not fit the metadata",
        code="gguf-misfit",
        where=where,
        expected=expected,
        got=got,
        remedy="get the file again",
    )
