"""The Llama architecture, small enough to read: RMSNorm, RoPE, SwiGLU, tied embeddings.

Written out here, and not taken from transformers, so that training compiles into few kernels and
decoding into one graph. The tensor names are those of a Hugging Face Llama checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the name that everybody knows)

from studies.gpu.sizes import Size

Cache = list[tuple[Tensor, Tensor]]  # keys and values of each layer: (rows, heads, length, dim)


class Norm(nn.Module):
    """RMSNorm, taken in float32."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
        return (wide * self.weight.float()).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on (rows, heads, length, dim) in Llama's half-and-half layout."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention over whole rows, or of one new position over a cache."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(size.hidden, size.hidden, bias=False) for _ in range(4)
        )

    def heads_of(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as (rows, heads, length, dim), the first two rotated."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend within whole rows: (rows, length, hidden) to the same."""
        q, k, v = self.heads_of(x, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def step(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: tuple[Tensor, Tensor],
        place: Tensor,
        seen: Tensor,
    ) -> Tensor:
        """Attend from one position, (rows, 1, hidden), to the cache that it is written into."""
        q, k, v = self.heads_of(x, cos, sin)
        cache[0].index_copy_(2, place, k)
        cache[1].index_copy_(2, place, v)
        mixed = F.scaled_dot_product_attention(q, cache[0], cache[1], attn_mask=seen)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden, size.mlp, bias=False)
        self.up_proj = nn.Linear(size.hidden, size.mlp, bias=False)
        self.down_proj = nn.Linear(size.mlp, size.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, hidden) to the same."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each after a norm and added to what came in."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.input_layernorm = Norm(size.hidden)
        self.self_attn = Attention(size)
        self.post_attention_layernorm = Norm(size.hidden)
        self.mlp = Mlp(size)


class Trunk(nn.Module):
    """Embeddings, layers and the last norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(size.vocabulary, size.hidden)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.norm = Norm(size.hidden)


class Llama(nn.Module):
    """A decoder with tied embeddings; the state dict holds parameters only."""

    cos: Tensor
    sin: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.model = Trunk(size)
        dim = size.hidden // size.heads
        turns = 10_000.0 ** (-torch.arange(0, dim, 2) / dim)
        angles = torch.arange(size.length)[:, None] * turns
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * size.layers) ** (0.5 * last))

    def logits(self, x: Tensor) -> Tensor:
        """Scores of every token after each position."""
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """(rows, length) of tokens to (rows, length, vocabulary) of scores."""
        x = self.model.embed_tokens(inputs)
        cos, sin = self.cos[: inputs.shape[1]], self.sin[: inputs.shape[1]]
        for layer in self.model.layers:
            x = x + layer.self_attn(layer.input_layernorm(x), cos, sin)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.logits(x)

    def step(self, inputs: Tensor, place: Tensor, cache: Cache) -> Tensor:
        """Scores (rows, vocabulary) after one more token (rows,) at position `place` (1,)."""
        x = self.model.embed_tokens(inputs)[:, None]
        cos, sin = self.cos[place], self.sin[place]
        length = cache[0][0].shape[2]
        seen = (torch.arange(length, device=inputs.device) <= place)[None, None, None]
        for layer, kept in zip(self.model.layers, cache, strict=True):
            x = x + layer.self_attn.step(layer.input_layernorm(x), cos, sin, kept, place, seen)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.logits(x)[:, 0]
