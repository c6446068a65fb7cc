"""The Llama architecture in plain torch: weights by their checkpoint names, and one forward pass.

Equal to transformers' LlamaForCausalLM (there is a test), and lean enough for a CPU. Knows
nothing of training or of text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

Weights = dict[str, Tensor]
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Shape:
    """The size of a model. The output head is tied to the embedding."""

    vocabulary: int = 1536
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    inner: int = 344
    rope_theta: float = 100.0  # texts are short: a small base tells neighbours apart sooner

    @property
    def head_width(self) -> int:
        """Features a head."""
        return self.width // self.heads


def new_weights(shape: Shape, seed: int) -> Weights:
    """Fresh float32 weights: norms 1, all else normal with deviation 1/√(columns).

    What writes into the residual stream is made smaller, so that the tokens' own features stay
    visible through the layers: a small model learns to copy much sooner so.
    """
    generator = torch.Generator().manual_seed(seed)
    width, kv = shape.width, shape.kv_heads * shape.head_width
    sizes = {EMBEDDING: (shape.vocabulary, width)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        sizes[prefix + "input_layernorm.weight"] = (width,)
        sizes[prefix + "self_attn.q_proj.weight"] = (width, width)
        sizes[prefix + "self_attn.k_proj.weight"] = (kv, width)
        sizes[prefix + "self_attn.v_proj.weight"] = (kv, width)
        sizes[prefix + "self_attn.o_proj.weight"] = (width, width)
        sizes[prefix + "post_attention_layernorm.weight"] = (width,)
        sizes[prefix + "mlp.gate_proj.weight"] = (shape.inner, width)
        sizes[prefix + "mlp.up_proj.weight"] = (shape.inner, width)
        sizes[prefix + "mlp.down_proj.weight"] = (width, shape.inner)
    sizes["model.norm.weight"] = (width,)
    outward = ("o_proj.weight", "down_proj.weight")
    return {
        name: torch.ones(size)
        if len(size) == 1
        else torch.empty(size).normal_(
            0, size[1] ** -0.5 * (0.3 if name.endswith(outward) else 1), generator=generator
        )
        for name, size in sizes.items()
    }


def rounded(weights: Weights) -> Weights:
    """The weights as they are after a save in bf16 and a load in float32."""
    return {name: w.detach().to(torch.bfloat16).float() for name, w in weights.items()}


def hidden_states(weights: Weights, shape: Shape, ids: Tensor, allowed: Tensor | None) -> Tensor:
    """The last layer's normed features, (rows, length, width), of token `ids`, (rows, length).

    `allowed`, (rows, 1, length, length), says who may look at whom; None is plain causal order.
    """
    rows, length = ids.shape
    x = F.embedding(ids, weights[EMBEDDING])
    cosine, sine = _rotation(length, shape, ids.device)

    def heads(name: str, source: Tensor, count: int) -> Tensor:
        flat = F.linear(source, weights[name])
        return flat.view(rows, length, count, shape.head_width).transpose(1, 2)

    def rotated(h: Tensor) -> Tensor:
        low, high = h.chunk(2, dim=-1)
        return h * cosine + torch.cat((-high, low), dim=-1) * sine

    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        attention = prefix + "self_attn."
        normed = _normed(x, weights[prefix + "input_layernorm.weight"])
        q = rotated(heads(attention + "q_proj.weight", normed, shape.heads))
        k = rotated(heads(attention + "k_proj.weight", normed, shape.kv_heads))
        v = heads(attention + "v_proj.weight", normed, shape.kv_heads)
        groups = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        seen = F.scaled_dot_product_attention(q, k, v, allowed, is_causal=allowed is None)
        seen = seen.transpose(1, 2).reshape(rows, length, shape.width)
        x = x + F.linear(seen, weights[attention + "o_proj.weight"])
        normed = _normed(x, weights[prefix + "post_attention_layernorm.weight"])
        gate = F.silu(F.linear(normed, weights[prefix + "mlp.gate_proj.weight"]))
        up = F.linear(normed, weights[prefix + "mlp.up_proj.weight"])
        x = x + F.linear(gate * up, weights[prefix + "mlp.down_proj.weight"])
    return _normed(x, weights["model.norm.weight"])


def logits(weights: Weights, features: Tensor) -> Tensor:
    """What the tied head says of features: (..., width) -> (..., vocabulary)."""
    return F.linear(features, weights[EMBEDDING])


def save_model(weights: Weights, shape: Shape, folder: Path, ends: list[int]) -> None:
    """Write a bf16 checkpoint as transformers does; generation stops at a token of `ends`."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=ends[0],
        pad_token_id=0,
        rope_theta=shape.rope_theta,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict({**weights, "lm_head.weight": weights[EMBEDDING]})
    model.generation_config = GenerationConfig(
        bos_token_id=1,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=0,
        do_sample=False,
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    written = folder / "config.json"
    settings = json.loads(written.read_text(encoding="utf-8"))
    settings["rope_theta"] = shape.rope_theta  # where transformers 4 looks for it
    written.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_weights(folder: Path) -> Weights:
    """The weights of a checkpoint folder as float32."""
    from safetensors.torch import load_file

    return {name: w.float() for name, w in load_file(folder / "model.safetensors").items()}


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-6)


def _rotation(length: int, shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, each (length, head width)."""
    exponent = torch.arange(0, shape.head_width, 2, device=device) / shape.head_width
    frequency = shape.rope_theta**-exponent
    angle = torch.outer(torch.arange(length, device=device), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()
