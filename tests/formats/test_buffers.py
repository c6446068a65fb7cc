"""What is a constant and not a weight, by its name."""

import pytest

from paramdelta.formats.buffers import is_constant


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("rotary_emb.full_attention_original_inv_freq", True),
        ("rotary_pos_emb.cos_cached", True),
        ("esm.rotary_emb.freqs_cos", True),
        ("model.rotary_emb.alpha", False),  # Mistral Large 4 trains it
        ("rotary_emb.proj.weight", False),
        ("rotary.freqs", False),
        ("bn.num_batches_tracked", True),
    ],
)
def test_constants(name, constant):
    """Tables of rotary positions are constants; parameters beside them are not."""
    assert is_constant(name) == constant
