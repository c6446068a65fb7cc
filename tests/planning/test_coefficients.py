"""Which coefficient a tensor gets, and what is refused because the model has no such tensors."""

import pytest

from paramdelta import UsageError
from paramdelta.planning.coefficients import coefficients, near
from paramdelta.planning.presets import layer_of
from paramdelta.recipe import read_scale
from tests.checkpoints import llama

AXES = {name: len(value.shape) for name, value in llama(layers=4).items()}
MLP = "model.layers.{}.mlp.up_proj.weight"


def scales(plain, axes=AXES):
    """Coefficient by name, and the subjects of rules without a tensor."""
    found, idle = coefficients(read_scale(plain), axes, axes)
    return {name: chosen.scale for name, chosen in found.items()}, [r.subject for r in idle]


def test_the_first_rule_wins():
    """Rules in order; the number at the end is for everything else."""
    found, idle = scales(
        [
            {"match": "*embed*", "value": 0},
            {"match": "*.mlp.*", "layers": {"0-1": 0.75, "2-3": [0.5, 0.25]}},
            {"match": ["*.up_proj.*", "*norm*"], "value": 9},
            0.5,
        ]
    )
    assert found["model.embed_tokens.weight"] == 0
    assert [found[MLP.format(layer)] for layer in range(4)] == [0.75, 0.75, 0.5, 0.25]
    assert found["model.norm.weight"] == 9
    assert found["lm_head.weight"] == 0.5
    assert idle == []


def test_a_layer_outside_of_the_ranges_goes_on():
    """To the next rule, as does a tensor that belongs to no layer."""
    found, _ = scales([{"match": "*", "layers": {"2": 7}}, {"match": "*.mlp.*", "value": 3}, 1])
    assert [found[MLP.format(layer)] for layer in range(4)] == [3, 3, 7, 3]
    assert found["model.norm.weight"] == 1


def test_rules_without_effect_are_told():
    """A rule whose tensors earlier ones have taken is no error, but is named."""
    assert scales([{"match": "*.mlp.*", "value": 1}, {"match": "*up*", "value": 2}, 0])[1] == [
        "*up*"
    ]


def test_uncovered_weights_are_refused():
    """Without a number at the end, the rules have to be for every weight."""
    with pytest.raises(UsageError, match=r"no rule .* model\.embed_tokens\.weight"):
        scales([{"match": "*.layers.*", "value": 1}])
    assert len(scales([{"match": "*", "value": 1}])[0]) == len(AXES)


@pytest.mark.parametrize(
    ("rule", "what", "remedy"),
    [
        ({"match": "*.mlps.*", "value": 1}, "matches '*.mlps.*'", "did you mean '*.mlp.*'?"),
        ({"match": ["*.mlp.*", "*emb_tokens*"], "value": 1}, "emb_tokens", "'*embed_tokens*'"),
        ({"match": "model.norm", "value": 1}, "model.norm", "model.norm.weight"),
        ({"preset": "experts-only"}, "belongs to experts-only", "match by name"),
        ({"match": "*.mlp.*", "layers": {"2-4": 1}}, "there is no layer 4", None),
        ({"match": "*norm.weight", "layers": {"7": 1}}, "there is no layer 7", None),
        ({"match": "lm_head*", "layers": {"0": 1}}, "there is no layer 0", None),
    ],
)
def test_what_the_model_has_not_is_refused(rule, what, remedy):
    """A pattern that matches nothing, with what may have been meant; layers beyond the last."""
    with pytest.raises(UsageError) as error:
        scales([rule, 1.0])
    assert what in error.value.what
    assert remedy is None or remedy in error.value.remedy


def test_the_last_layer_is_the_models():
    """A rule for some layers only (experts in every second) may name the last layer all the same;
    but of two stacks each has its own last layer.
    """
    axes = {f"model.layers.{i}.mlp.{'gate' if i % 2 else 'experts.0'}.weight": 2 for i in range(6)}
    axes |= {f"vision.blocks.{i}.mlp.weight": 2 for i in range(2)}
    found, _ = scales([{"match": "*.experts.*", "layers": {"0-5": [1, 0.5]}}, 0], axes)
    assert found["model.layers.4.mlp.experts.0.weight"] == 0.6
    with pytest.raises(UsageError, match="no layer 2"):
        scales([{"match": "vision.*", "layers": {"0-2": 1}}, 0], axes)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.mlp.experts.3.up_proj.weight", 12),
        ("transformer.h.0.attn.c_attn.weight", 0),
        ("h.11.attn.c_attn.weight", 11),
        ("bert.encoder.layer.5.output.dense.weight", 5),
        ("encoder.block.3.layer.0.SelfAttention.q.weight", 3),
        ("visual.blocks.31.attn.qkv.weight", 31),
        ("model.norm.weight", None),
        ("classifier.0.weight", None),
    ],
)
def test_numbers_of_layers(name, layer):
    """The first number behind a word for layers counts."""
    assert layer_of(name) == layer


def test_near_names():
    """A glob that nearly fits is mended; elsewhere the nearest names are told."""
    names = list(AXES)
    assert near("*.self_atn.q*", names) == "did you mean '*.self_attn.q*'?"
    assert "lm_head.weight" in near("lm_heat.weigth", names)
    assert near("~~~~", names) is None
