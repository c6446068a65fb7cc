"""Compares config.json key by key: weights of equal names and shapes can have another meaning.

A key gives weights their meaning (heads, multipliers, routing), or says how positions work, or does
not matter to a mix (sizes, which the shapes show; training; sampling; ids, which follow the
vocabulary). Other keys are unknown: a note shows both values.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.planning.findings import Findings, Severity

# Each pattern is for a whole key, without the sections that it stands in. The first table decides.
_HARMLESS = re.compile(
    r".*(dropout|drop_path|drop_rate|layerdrop|pdrop|_init_|initializer|_loss|loss_|aux|jitter"
    r"|noise|label|gradient|checkpointing|_attn_implementation|capacity|suppress|_penalty).*"
    r"|(freeze|add_router_probs|router_dtype|batch_prioritized|pad_head_dim|chunk_size_lm).*"
    r"|.*(fp32|_overlap|before_dropping|ignore_padding).*"
    r"|(init|mask_time|mask_feature|return_|forced_|summary_|task_|unsloth|finetuning).*"
    r"|output_(attentions|hidden_states|past|\w+_logits)|.*(_std|_coef|_init|_cost|_weight)"
    r"|.*(_token_ids?|_token_index)"
    # What the shapes or the vocabulary show.
    r"|(.*_)?(hidden|intermediate|embedding|inner|ffn|vocab|image|patch|channel|mlp)_(size|sizes|dim)"
    r"|d_model|d_ff|n_embd|n_inner|n_layers?|depths?|(.*_)?num(_\w+)?_layers|(en|de)coder_layers"
    r"|num_channels"
    r"|num_(local_|routed_|shared_)?experts|n_(routed|shared)_experts|moe_num_experts"
    r"|(unpadded_)?vocab_size(_per_layer_input)?|tie_word_embeddings"
    # Where it comes from, how it is stored and run.
    r"|transformers_version|_name_or_path|_commit_hash|name_or_path|(torch_)?dtype|architectures"
    r"|auto_map|problem_type|tokenizer_class|attn_implementation|pretraining_tp|torchscript"
    r"|pruned_heads|use_cache|use_bfloat16|chunk_size_feed_forward|(use_)?\w*kernels?|use_mambapy"
    r"|quantization.*|compression.*|generation_config|model_max_length|deterministic_flash_attn"
    # How it samples.
    r"|max_length|min_length|do_sample|early_stopping|num_beams|num_beam_groups|temperature|top_k"
    r"|top_p|typical_p|no_repeat_ngram_size|encoder_no_repeat_ngram_size|num_return_sequences"
    r"|remove_invalid_values|exponential_decay_length_penalty|prefix|num_logits_to_keep|bad_words"
)
_POSITIONS = re.compile(
    r"rope_(theta|scaling|parameters|ratio)|(\w+_)?rope_theta|rotary_emb(edding)?_base"
    r"|(\w+_)?max_position_embeddings|n_positions|n_ctx|max_seq\w*|seq_length|context_length"
    r"|\w*sliding_window\w*|max_window_layers|layer_types|global_attn_every\w*|attention_chunk_size|rope_local_base_freq"
)
_MEANING = re.compile(
    r"model_type|(.*_)?(n_?)?heads?(_\w+)?|.*head_dim.*|num_(kv|key_value)\w*|d_kv|n_groups?|num_groups"
    r"|multi_query|new_decoder_architecture|(.*_)?attention_type|is_decoder|.*causal.*|.*bidirectional.*"
    r"|(.*_)?(act|act_fn|activation|activation_(fn|func|function)|act_func)|feed_forward_proj"
    r"|.*(multiplier|scalar|softcap\w*|scaling|swiglu).*|(.*_)?scale(_\w+)?|dim_model_base"
    r"|.*(expert|top_?k|moe|rout(er|ing|e)|sparse_step|dense_replace|scoring).*"
    r"|partial_rotary_factor|rotary_(pct|dim|percent|ndims)|rope_interleave\w*|rotary_interleaved"
    r"|.*(no_rope|alibi|relative_attention|mrope).*|position_embedding_type|use_rotary\w*"
    r"|(.*_)?(norm_type|pre_norm|post_norm|qk_norm\w*|qk_layernorm|normalize_before)"
    r"|do_layer_norm_before|parallel_(attn|residual)|use_parallel_residual|layers_block_type"
)
_SAME = {
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_python": "gelu",
}
_ALIASES = {"global_rope_theta": "rope_theta", "local_rope_theta": "rope_local_base_freq"}
# Kinds of layers that have rotary positions of their own.
_BOTH = {"full_attention", "sliding_attention"}
# Which layers see how far: version 4 states a rule, version 5 what follows from it.
_KINDS = re.compile(r"layer_types|_?sliding_window_pattern|global_attn_every_n_layers")
_NEUTRAL: tuple[Any, ...] = (
    None,
    False,
    0,
    1,
    "",
    [],
    {},
)  # what a key that is not there may well stand for


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a multimodal config.json that describes the text model; else all of it."""
    part = config.get("text_config")
    return part if isinstance(part, Mapping) and "model_type" in part else config


def compare_architecture(new: Checkpoint, source: Checkpoint, findings: Findings) -> None:
    """Refuse weights with another meaning; note that positions follow the new base, and the rest.

    A text model beside a multimodal one is compared with the text part of that one. Of a checkpoint
    without config.json (GGUF), what the weights state is compared.
    """
    if not source.config or not new.config:
        return
    ours, theirs = new.config, source.config
    if ours.get("model_type") != theirs.get("model_type"):
        ours, theirs = text_part(ours), text_part(theirs)
    now, then = dict(_flat(_decoded(ours))), dict(_flat(_decoded(theirs)))
    positions, unknown = [], []
    for path in then if source.is_bare else dict.fromkeys((*then, *now)):
        key = path.rpartition(".")[2]
        old, current = _value(then.get(path)), _value(now.get(path))
        if old == current or _HARMLESS.fullmatch(key):
            continue
        stated = path in then and path in now and None not in (old, current)
        shown = f"{path}: {_show(then, path)} -> {_show(now, path)}"
        if _KINDS.fullmatch(key) and not stated:
            continue
        if _POSITIONS.fullmatch(key):
            positions.append(shown)
        elif _MEANING.fullmatch(key) and stated:
            findings.add(
                Severity.REFUSED,
                "architecture-differs",
                f"config.json says {path}: {old!r}, the new base {current!r}",
                source,
                remedy="check that it is the right checkpoint",
                allowed="mixed anyway, as weights of the new base's architecture",
            )
        elif stated or not _is_neutral(key, old if current is None else current, ours):
            unknown.append(shown)
    if not source.role.startswith("post"):
        return
    if positions:
        findings.add(
            Severity.NOTE,
            "positions",
            f"positions and context length follow the new base ({'; '.join(positions)})",
            source,
        )
    if unknown:
        findings.add(
            Severity.NOTE,
            "config-differs",
            f"config.json differs in further keys, which follow the new base "
            f"({'; '.join(unknown)})",
            source,
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values by their keys, with dots; rotary positions as older versions write them."""
    for key, value in _rotary(config).items():
        if key == "rope_scaling" and isinstance(value, Mapping) and "type" in value:
            value = {"rope_type": value["type"]} | {k: v for k, v in value.items() if k != "type"}
        inside = isinstance(value, Mapping) and not (
            _HARMLESS.fullmatch(key) or _POSITIONS.fullmatch(key)
        )
        if inside:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _rotary(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section with its rotary positions under the keys of transformers 4."""
    found = {_ALIASES.get(key, key): value for key, value in config.items()}
    parameters = found.get("rope_parameters")
    if not isinstance(parameters, Mapping):
        return found
    local = parameters.get("sliding_attention")
    if parameters.keys() == _BOTH and isinstance(local, Mapping):
        if local.keys() - {"rope_theta"} != {"rope_type"} or local["rope_type"] != "default":
            return found
        found["rope_local_base_freq"] = local.get("rope_theta")
        parameters = parameters["full_attention"]
    if not isinstance(parameters, Mapping) or "rope_type" not in parameters:
        return found
    del found["rope_parameters"]
    rest = {k: v for k, v in parameters.items() if k not in ("rope_theta", "type")}
    partial = rest.pop("partial_rotary_factor", None)
    if partial is not None:
        found["partial_rotary_factor"] = partial
    found["rope_theta"] = parameters.get("rope_theta", found.get("rope_theta"))
    found["rope_scaling"] = None if rest == {"rope_type": "default"} else rest
    return found


def _decoded(value: Any) -> Any:
    """Infinities as numbers: transformers 5 writes ``{"__float__": "Infinity"}``."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity"):
            return float(value["__float__"])
        return {key: _decoded(item) for key, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, list) else value


def _value(value: Any) -> Any:
    return _SAME.get(value, value) if isinstance(value, str) else value


def _is_neutral(key: str, value: Any, config: Mapping[str, Any]) -> bool:
    """Whether a value may well be what a checkpoint means that does not state it."""
    if key == "head_dim":
        size, heads = config.get("hidden_size"), config.get("num_attention_heads")
        if isinstance(size, int) and isinstance(heads, int) and heads > 0:
            return bool(value == size // heads)
    if key.startswith("num_key_value"):
        return bool(value == config.get("num_attention_heads"))
    return value in _NEUTRAL


def _show(config: Mapping[str, Any], path: str) -> str:
    if path not in config:
        return "not stated"
    text = repr(config[path])
    return text if len(text) <= 200 else text[:199] + "…"
