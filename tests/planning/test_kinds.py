"""The kinds of tensors on lists of real names."""

import pytest

from paramdelta.planning.kinds import KINDS, kind_of

# Names as the families' checkpoints have them, and their kinds.
NAMES = """
model.embed_tokens.weight embedding
model.layers.0.self_attn.q_proj.weight q
model.layers.0.self_attn.q_proj.bias bias
model.layers.0.self_attn.q_norm.weight norm
model.layers.0.self_attn.k_proj.weight k
model.layers.0.self_attn.v_proj.weight v
model.layers.0.self_attn.o_proj.weight o
model.layers.0.input_layernorm.weight norm
model.layers.0.mlp.gate_proj.weight gate
model.layers.0.mlp.up_proj.weight up
model.layers.0.mlp.down_proj.weight down
model.norm.weight norm
lm_head.weight head
model.layers.0.self_attn.qkv_proj.weight qkv
model.layers.0.mlp.gate_up_proj.weight gate
model.layers.0.block_sparse_moe.gate.weight router
model.layers.0.block_sparse_moe.experts.1.w2.weight experts
model.layers.0.mlp.gate.weight router
model.layers.0.mlp.experts.1.gate_proj.weight experts
model.layers.0.mlp.experts.gate_up_proj experts
model.layers.0.mlp.shared_experts.up_proj.weight experts
model.layers.0.mlp.router.weight router
model.layers.0.self_attn.kv_a_proj_with_mqa.weight qkv
tok_embeddings.weight embedding
layers.0.attention.wq.weight q
layers.0.attention.wo.weight o
layers.0.feed_forward.w1.weight gate
layers.0.feed_forward.w2.weight down
layers.0.feed_forward.w3.weight up
output.weight head
wte.weight embedding
h.0.ln_1.weight norm
h.0.attn.c_attn.weight qkv
h.0.attn.c_proj.weight o
h.0.mlp.c_fc.weight up
h.0.mlp.c_proj.weight down
gpt_neox.layers.0.attention.query_key_value.weight qkv
gpt_neox.layers.0.attention.dense.weight o
gpt_neox.layers.0.mlp.dense_h_to_4h.weight up
gpt_neox.layers.0.mlp.dense_4h_to_h.weight down
embeddings.word_embeddings.weight embedding
embeddings.LayerNorm.weight norm
encoder.layer.0.attention.self.query.weight q
encoder.layer.0.attention.self.key.weight k
encoder.layer.0.attention.output.dense.weight o
encoder.layer.0.attention.output.LayerNorm.bias norm
encoder.layer.0.intermediate.dense.weight up
encoder.layer.0.output.dense.weight down
pooler.dense.weight other
shared.weight embedding
encoder.block.0.layer.0.SelfAttention.q.weight q
encoder.block.0.layer.0.SelfAttention.o.weight o
encoder.block.0.layer.0.layer_norm.weight norm
decoder.block.0.layer.1.EncDecAttention.k.weight k
encoder.block.0.layer.1.DenseReluDense.wi_0.weight gate
encoder.block.0.layer.1.DenseReluDense.wi_1.weight up
encoder.block.0.layer.1.DenseReluDense.wo.weight down
model.decoder.layers.0.self_attn.out_proj.weight o
model.decoder.layers.0.fc1.weight up
model.decoder.layers.0.fc2.weight down
transformer.layer.0.attention.q_lin.weight q
transformer.layer.0.ffn.lin1.weight up
blocks.0.sa.heads.1.key.weight k
blocks.0.sa.proj.weight o
token_embedding_table.weight embedding
model.layers.0.mamba.in_proj.weight other
"""


@pytest.mark.parametrize("line", NAMES.split("\n")[1:-1])
def test_kinds(line):
    """Each name has its kind."""
    name, kind = line.split()
    axes = 1 if kind in ("norm", "bias") else 2
    assert kind_of(name, axes) == kind
    assert kind in KINDS
