"""What the plan says about checkpoints that fit, nearly fit and do not fit."""

import dataclasses

import numpy as np
import pytest

from paramdelta import Delta, MisfitError, Recipe, Severity, plan
from paramdelta.jobs.mix import MixJob
from paramdelta.planning.sweep import sweep_of_one
from tests.checkpoints import bf16, llama, moved, save

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def codes(made):
    """Severity by code of all findings."""
    return {finding.code: finding.severity for finding in made.findings}


def three(tmp_path, base=None, post=None, new=None, configs=({}, {}, {}), **files):
    """A recipe for base, post and new base with these tensors and configs."""
    base = llama() if base is None else base
    post = moved(base, 1) if post is None else post
    new = moved(base, 2) if new is None else new
    folders = [
        str(save(tmp_path / name, tensors, config_json=config, **files))
        for name, tensors, config in zip(
            ("base", "post", "new"), (base, post, new), configs, strict=True
        )
    ]
    return Recipe(folders[2], (Delta(folders[1], folders[0]),))


def test_a_fitting_lineage(lineage):
    """No findings; every tensor is new + post − base; bytes are counted."""
    made = plan(lineage.recipe(0.5))
    assert made.findings == ()
    assert all([t.coefficient for t in o.terms] == [1.0, 0.5, -0.5] for o in made.tensors)
    assert made.bytes_to_read == 3 * made.bytes_to_write == 3 * made.new_base.nbytes
    assert made.likeness["base ~ new base"].cosine > 0.9


def test_the_digest_is_of_what_matters(lineage, tmp_path):
    """Equal for equal plans, another for another scale, dtype or source."""
    digest = plan(lineage.recipe()).digest
    assert plan(lineage.recipe()).digest == digest
    assert plan(lineage.recipe(0.5)).digest != digest
    assert plan(lineage.recipe(dtype="F32")).digest != digest


@pytest.mark.parametrize(
    ("where", "code", "severity", "mixed"),
    [
        (("new",), "only-in-new-base", Severity.WARNING, 21),
        (("post",), "only-in-post", Severity.REFUSED, 21),
        (("base",), "only-in-base", Severity.NOTE, 21),
        (("new", "base"), "missing-in-post", Severity.REFUSED, 21),
        (("new", "post"), "missing-in-base", Severity.REFUSED, 21),
        (("post", "base"), "missing-in-new-base", Severity.REFUSED, 21),
        (("new", "post", "base"), None, None, 22),
    ],
)
def test_an_extra_tensor_anywhere(tmp_path, where, code, severity, mixed):
    """Whatever subset of the three holds a tensor, it is said; nothing is dropped silently."""
    base = llama()
    sets = {"base": base, "post": moved(base, 1), "new": moved(base, 2)}
    for name in where:
        sets[name] = sets[name] | {"extra.weight": bf16(np.ones((4, 4)))}
    made = plan(three(tmp_path, **sets))
    assert codes(made).get(code) == severity
    assert sum(bool(t.pairs) for t in made.tensors) == mixed
    assert ("extra.weight" in {t.name for t in made.tensors}) == ("new" in where)
    if severity is Severity.REFUSED:
        with pytest.raises(MisfitError, match=r"extra\.weight"):
            made.check()
        allowed = plan(dataclasses.replace(made.recipe, allow=(code,)))
        allowed.check()
        assert codes(allowed)[code] is Severity.WARNING


def test_shapes_that_differ_are_refused(tmp_path):
    """Another shape in post is refused by name; allowed, the new base's tensor is copied."""
    post = llama() | {HEAD: bf16(np.ones((40, 16)))}
    recipe = three(tmp_path, post=post)
    made = plan(recipe)
    assert codes(made)["shape-differs"] is Severity.REFUSED
    assert made.refused[0].tensors == (HEAD,)
    allowed = plan(dataclasses.replace(recipe, allow=("shape-differs",)))
    assert [t.name for t in allowed.tensors if not t.pairs] == [HEAD]


def test_dtypes_that_differ_are_notes(tmp_path):
    """Another float dtype is mixed, and said; the output keeps the new base's."""
    wide = {n: (v.astype(np.uint32) << 16).view(np.float32) for n, v in llama(0).items()}
    made = plan(three(tmp_path, post=wide))
    assert codes(made) == {"dtype-differs": Severity.NOTE, "no-delta": Severity.WARNING}
    assert {t.dtype for t in made.tensors} == {"BF16"}
    assert made.bytes_to_read == 4 * made.bytes_to_write


def test_integers_and_buffers_are_copied(tmp_path):
    """Integer and boolean tensors and known constants come from the new base, never scaled."""
    extra = {
        "embeddings.position_ids": np.arange(8)[None],
        "mask": np.ones((4, 4), np.bool_),
        "rotary_emb.inv_freq": np.ones(4, np.float32),
        "h.0.attn.bias": np.tril(np.ones((1, 1, 4, 4), np.float32)),
        "h.0.attn.masked_bias": np.float32(-1e4).reshape(()),
    }
    weights = {"h.1.attn.bias": bf16(np.ones(16)), **llama()}  # a bias of a projection
    recipe = three(tmp_path, base=weights | extra, post=moved(weights, 1), new=weights | extra)
    made = plan(recipe)
    assert not made.refused
    assert {t.name for t in made.tensors if not t.pairs} == set(extra)
    made = plan(three(tmp_path / "2", base=weights, post=weights | extra, new=weights))
    assert codes(made)["buffer-left"] is Severity.NOTE
    assert not made.refused


def test_wide_elements_come_first(tmp_path):
    """Tensors of wider dtypes are laid before narrower ones, so that all stay aligned."""
    tensors = {"a": bf16(np.ones(3)), "b": np.ones((2, 2), np.float32), "c": np.arange(3)}
    made = plan(three(tmp_path, base=tensors, post=tensors, new=tensors))
    assert [t.name for t in made.tensors] == ["c", "b", "a"]


def test_quantized_weights_are_refused(tmp_path):
    """FP8 weights cannot be mixed yet and are not pretended to be."""
    recipe = three(tmp_path)
    path = tmp_path / "post" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"BF16", "shape": [16, 16]', b'"F8_E5M2","shape":[16,32]'))
    made = plan(recipe)
    assert codes(made)["quantized"] is Severity.REFUSED


def test_unrelated_checkpoints_are_warned_of(tmp_path):
    """A post or a new base that was never the same model shows by its cosine."""
    made = plan(three(tmp_path / "a", new=llama(99)))
    assert codes(made)["unrelated"] is Severity.WARNING
    assert abs(made.likeness["base ~ new base"].cosine) < 0.3
    made = plan(three(tmp_path / "b", post=llama(98)))
    assert "unrelated" in codes(made)
    base = llama()
    assert "no-delta" in codes(plan(three(tmp_path / "c", base=base, post=base)))


def test_prefixes_are_bridged(tmp_path):
    """A base saved without its head class has other names: the prefix is found and said."""
    base = llama()
    bare = {n.removeprefix("model."): v for n, v in base.items()}
    made = plan(three(tmp_path / "a", base=bare, post=moved(base, 1), new=moved(base, 2)))
    assert codes(made) == {"prefix": Severity.NOTE}
    assert sum(bool(t.pairs) for t in made.tensors) == 21
    made = plan(three(tmp_path / "b", base=base, post=moved(base, 1), new=moved(bare, 2)))
    assert codes(made) == {"prefix": Severity.NOTE}
    assert sum(bool(t.pairs) for t in made.tensors) == 21


def drop_head(tensors):
    """The tensors of a tied checkpoint."""
    return {n: v for n, v in tensors.items() if n != HEAD}


def test_tied_everywhere(tmp_path):
    """Three tied checkpoints give a tied output, whether or not one stores the head again."""
    base = drop_head(llama())
    tied = {"tie_word_embeddings": True}
    recipe = three(tmp_path / "a", base=base, configs=(tied, tied, tied))
    made = plan(recipe)
    assert made.findings == ()
    assert HEAD not in {t.name for t in made.tensors}
    post = moved(base, 1)
    post[HEAD] = post[EMBEDDING]
    made = plan(three(tmp_path / "b", base=base, post=post, configs=(tied, tied, tied)))
    assert codes(made) == {"head-repeats": Severity.NOTE}


def test_only_post_is_untied(tmp_path):
    """A head that only post has goes on the new base's embedding, and config.json is told."""
    base = drop_head(llama())
    post = moved(llama(), 1)
    tied, untied = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
    made = plan(three(tmp_path, base=base, post=post, configs=(tied, untied, tied)))
    assert codes(made) == {"untied": Severity.WARNING}
    head = next(t for t in made.tensors if t.name == HEAD)
    assert [t.view.name for t in head.terms] == [EMBEDDING, HEAD, EMBEDDING]
    config = next(c for c in made.companions if c.name == "config.json")
    assert dict(config.changes)["tie_word_embeddings"] is False


def test_only_new_base_is_untied(tmp_path):
    """A tied post on an untied new base: the embedding's Δ goes to the head too."""
    base = drop_head(llama())
    tied, untied = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
    made = plan(three(tmp_path, base=base, new=llama(), configs=(tied, tied, untied)))
    head = next(t for t in made.tensors if t.name == HEAD)
    assert [t.view.name for t in head.terms] == [HEAD, EMBEDDING, EMBEDDING]
    assert not made.refused


def test_a_head_that_is_missing_is_not_invented(tmp_path):
    """Untied by its config and without a head: the new base simply lacks it, which is refused."""
    untied = {"tie_word_embeddings": False}
    recipe = three(tmp_path, new=drop_head(llama()), configs=(untied, untied, untied))
    assert codes(plan(recipe))["missing-in-new-base"] is Severity.REFUSED


def test_architectures_that_differ_are_refused(tmp_path):
    """Equal shapes with other heads mean other rows."""
    configs = ({}, {"num_attention_heads": 4}, {"num_attention_heads": 8})
    made = plan(three(tmp_path, configs=configs))
    assert codes(made)["architecture-differs"] is Severity.REFUSED


def test_positions_follow_the_new_base(tmp_path):
    """Another RoPE in the new base is said, and is what config.json keeps."""
    configs = ({"rope_theta": 1e4}, {"rope_theta": 1e4}, {"rope_theta": 5e5})
    made = plan(three(tmp_path, configs=configs))
    assert codes(made) == {"positions": Severity.NOTE}
    config = next(c for c in made.companions if c.name == "config.json")
    assert config.giver == "new base"
    assert "rope_theta" not in dict(config.changes)


def test_several_deltas(tmp_path):
    """Two Δ: five terms a tensor, each with its scale."""
    recipe = three(tmp_path)
    second = save(tmp_path / "second", moved(llama(), 5), config_json={})
    delta = Delta(str(second), recipe.deltas[0].base, -0.25)
    made = plan(dataclasses.replace(recipe, deltas=(*recipe.deltas, delta)))
    assert [t.coefficient for t in made.tensors[0].terms] == [1.0, 1.0, -1.0, -0.25, 0.25]
    assert made.findings == ()


def test_rules_without_effect_are_warned_of(tmp_path):
    """A rule whose tensors earlier rules have taken is named; the mix is not refused."""
    scale = [{"match": "*.mlp.*", "value": 1}, {"match": "*.up_proj.*", "value": 2}, 0.5]
    recipe = three(tmp_path)
    made = plan(
        dataclasses.replace(recipe, deltas=(dataclasses.replace(recipe.deltas[0], scale=scale),))
    )
    assert codes(made) == {"rule-idle": Severity.WARNING}
    assert "*.up_proj.*" in made.findings[0].what


def test_shared_operands_need_one_buffer(tmp_path):
    """Two Δ of one base: four operands and a result are held, and not six and a result."""
    recipe = three(tmp_path)
    second = save(tmp_path / "second", moved(llama(), 5), config_json={})
    delta = dataclasses.replace(recipe.deltas[0], post=str(second), scale=0.5)
    made = plan(dataclasses.replace(recipe, deltas=(*recipe.deltas, delta)))
    job = MixJob.of(sweep_of_one(made), 0)
    assert job.need(1001).each - job.need(1).each == 5 * 1000  # four operands and the result
    assert made.bytes_to_read == 4 * made.bytes_to_write
