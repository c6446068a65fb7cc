"""Which tensors a Llama has: names, shapes and config, and nothing about files or values."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Llama:
    """The sizes that fix every tensor of a Llama checkpoint. Heads are 128 or 64 wide."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int = 128256
    tied: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name to shape, in the order in which transformers writes them."""
        kv = self.hidden // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab, self.hidden)
        }
        for layer in range(self.layers):
            block = {
                "input_layernorm": (self.hidden,),
                "mlp.down_proj": (self.hidden, self.intermediate),
                "mlp.gate_proj": (self.intermediate, self.hidden),
                "mlp.up_proj": (self.intermediate, self.hidden),
                "post_attention_layernorm": (self.hidden,),
                "self_attn.k_proj": (kv, self.hidden),
                "self_attn.o_proj": (self.hidden, self.hidden),
                "self_attn.q_proj": (self.hidden, self.hidden),
                "self_attn.v_proj": (kv, self.hidden),
            }
            shapes |= {f"model.layers.{layer}.{name}.weight": s for name, s in block.items()}
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes

    def parameters(self) -> int:
        """How many numbers the checkpoint holds."""
        return sum(math.prod(shape) for shape in self.tensors().values())

    def config(self) -> dict[str, object]:
        """What transformers reads as this model's config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "bos_token_id": self.vocab - 256,
            "eos_token_id": self.vocab - 255,
            "torch_dtype": "bfloat16",
        }


# Llama-3.2-1B with its own output head and a narrower MLP: 1.398 B parameters.
BENCH = Llama(hidden=2048, layers=16, intermediate=7168, heads=32, kv_heads=8)

SIZES = {
    "1B": Llama(hidden=2048, layers=16, intermediate=8192, heads=32, kv_heads=8, tied=True),
    "3B": Llama(hidden=3072, layers=28, intermediate=8192, heads=24, kv_heads=8, tied=True),
    "8B": Llama(hidden=4096, layers=32, intermediate=14336, heads=32, kv_heads=8),
    "70B": Llama(hidden=8192, layers=80, intermediate=28672, heads=64, kv_heads=8),
    "405B": Llama(hidden=16384, layers=126, intermediate=53248, heads=128, kv_heads=8),
    # One layer of Llama-3.1-405B between its embedding and its head, 4.2 GB each.
    "wide": Llama(hidden=16384, layers=1, intermediate=53248, heads=128, kv_heads=8),
}
