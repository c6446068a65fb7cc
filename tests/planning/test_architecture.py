"""config.json key by key: what gives weights their meaning, positions, and the rest."""

import pytest

from paramdelta import Severity, plan
from tests.planning.test_plan import codes, three

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "transformers_version": "4.40.0",
}


def found(tmp_path, old, new):
    """Codes and texts of the findings where post and base have one config, the new base another."""
    made = plan(three(tmp_path, configs=(old, old, new)))
    return codes(made), {f.code: f.what for f in made.findings}


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("n_head", 4, 8),
        ("num_key_value_heads", 2, 4),
        ("hidden_activation", "gelu", "silu"),
        ("embedding_multiplier", 12.0, 1.0),
        ("attention_multiplier", 0.01, 0.02),
        ("query_pre_attn_scalar", 256, 144),
        ("final_logit_softcapping", 30.0, 50.0),
        ("logits_scaling", 8.0, 16.0),
        ("num_experts_per_tok", 2, 4),
        ("norm_topk_prob", True, False),
        ("routed_scaling_factor", 1.0, 2.5),
        ("scoring_func", "softmax", "sigmoid"),
        ("rope_interleave", True, False),
        ("partial_rotary_factor", 0.5, 1.0),
        ("layers_block_type", ["mamba", "attention"], ["attention", "mamba"]),
        ("scale_emb", 12, 1),
        ("parallel_attn", True, False),
    ],
)
@pytest.mark.parametrize("section", ["", "text_config"])
def test_keys_that_give_weights_their_meaning(tmp_path, key, old, new, section):
    """Refused, at the top and inside a section; the message shows both values."""

    def config(value):
        inner = LLAMA | {key: value}
        return {"model_type": "vlm", section: inner} if section else inner

    severity, said = found(tmp_path, config(old), config(new))
    assert severity == {"architecture-differs": Severity.REFUSED}
    place = f"{section}.{key}" if section else key
    assert f"{place}: {old!r}, the new base {new!r}" in said["architecture-differs"]


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("transformers_version", "4.40.0", "5.1.0"),
        ("attention_dropout", 0.0, 0.1),
        ("router_aux_loss_coef", 0.001, 0.01),
        ("initializer_range", 0.02, 0.006),
        ("torch_dtype", "float32", "bfloat16"),
        ("use_cache", True, False),
        ("eos_token_id", 2, [2, 5]),
        ("id2label", {"0": "a"}, {"0": "b"}),
        ("top_k", 50, 20),
        ("hidden_act", "swish", "silu"),
        ("hidden_act", "gelu_pytorch_tanh", "gelu_new"),
        ("freeze_lm_head", True, False),
        ("moe_shared_expert_overlap", True, False),
        ("scale_attention_softmax_in_fp32", True, False),
        ("time_step_limit", [0.0, float("inf")], [0.0, {"__float__": "Infinity"}]),
        ("clip", float("-inf"), {"__float__": "-Infinity"}),
    ],
)
def test_keys_that_do_not_matter(tmp_path, key, old, new):
    """No finding."""
    severity, _ = found(tmp_path, LLAMA | {key: old}, LLAMA | {key: new})
    assert severity == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_theta": 1e6}),
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
        ({}, {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
        ({"sliding_window": 4096}, {"sliding_window": None}),
        ({"max_position_embeddings": 8192}, {"max_position_embeddings": 131072}),
    ],
)
def test_positions_follow_the_new_base(tmp_path, old, new):
    """A note, once: for post."""
    severity, said = found(tmp_path, LLAMA | old, LLAMA | new)
    assert severity == {"positions": Severity.NOTE}
    assert "->" in said["positions"]


def test_positions_as_two_versions_of_transformers_write_them(tmp_path):
    """The same facts under other keys are no difference."""
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}
    assert found(tmp_path, LLAMA | old, LLAMA | new)[0] == {}
    old = {"rope_theta": 5e5, "partial_rotary_factor": 0.5}
    new = {
        "rope_parameters": {
            "rope_theta": 5e5,
            "rope_type": "default",
            "partial_rotary_factor": 0.25,
        }
    }
    assert "architecture-differs" in found(tmp_path / "b", LLAMA | old, LLAMA | new)[0]


SLIDING, FULL = (
    {"rope_type": "default", "rope_theta": theta, **more}
    for theta, more in ((1e4, {}), (1e6, {"rope_type": "linear", "factor": 8.0}))
)


@pytest.mark.parametrize(
    "old",
    [
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6},
        {"global_rope_theta": 1e6, "local_rope_theta": 1e4, "global_attn_every_n_layers": 3},
    ],
)
def test_positions_by_kind_of_layer(tmp_path, old):
    """Gemma 3 and ModernBERT: version 5 states them for each kind of layer."""
    old = LLAMA | old | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    both = {"full_attention": FULL, "sliding_attention": SLIDING}
    new = LLAMA | {"rope_parameters": both, "layer_types": ["full_attention"]}
    assert found(tmp_path, old, new)[0] == {}
    both = {"full_attention": FULL, "sliding_attention": SLIDING | {"rope_theta": 5e4}}
    severity, said = found(tmp_path / "b", old, new | {"rope_parameters": both})
    assert severity == {"positions": Severity.NOTE}
    assert "rope_local_base_freq: 10000.0 -> 50000.0" in said["positions"]


def test_unknown_keys_are_a_note_with_both_values(tmp_path):
    """Whatever a model of tomorrow calls them; a key that only one states counts as well."""
    severity, said = found(
        tmp_path, LLAMA | {"warp_drive": 3}, LLAMA | {"warp_drive": 4, "rms_norm_eps": 1e-6}
    )
    assert severity == {"config-differs": Severity.NOTE}
    assert "warp_drive: 3 -> 4" in said["config-differs"]
    assert "rms_norm_eps: 1e-05 -> 1e-06" in said["config-differs"]
    severity, said = found(tmp_path / "b", LLAMA, LLAMA | {"attn_logit_softcapping": 50.0})
    assert "attn_logit_softcapping: not stated -> 50.0" in said["config-differs"]


def test_defaults_that_a_newer_version_states(tmp_path):
    """False, 1, and a size of heads that follows from the others."""
    newer = LLAMA | {"mlp_bias": False, "head_dim": 4, "num_key_value_heads": 4, "scale": 1.0}
    assert found(tmp_path, LLAMA, newer)[0] == {}
