"""Sizes of heads by config.json."""

from paramdelta.planning.attention import head_size

LLAMA = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2}


def test_rows_and_columns():
    """q has all heads, k and v the few, o has them as columns."""
    assert head_size(LLAMA, "q", (64, 64)) == 8
    assert head_size(LLAMA, "k", (16, 64)) == 8
    assert head_size(LLAMA, "v", (16, 64)) == 8
    assert head_size(LLAMA, "o", (64, 64)) == 8
    assert head_size({**LLAMA, "head_dim": 16}, "q", (128, 64)) == 16


def test_a_section_for_the_text():
    """The numbers may stand in a section of config.json."""
    assert head_size({"text_config": LLAMA, "num_attention_heads": 5}, "q", (64, 64)) == 8


def test_what_does_not_fit():
    """None where the shape is another, or nothing is said, or a weight has no heads."""
    assert head_size(LLAMA, "k", (64, 64)) is None
    assert head_size({}, "q", (64, 64)) is None
    assert head_size(LLAMA, "up", (64, 64)) is None
    assert head_size({**LLAMA, "num_attention_heads": "8"}, "q", (64, 64)) is None
