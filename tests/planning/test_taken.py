"""Tensors that the output takes from post outright, and what describes them."""

import json

import numpy as np
import pytest

from paramdelta import Delta, MisfitError, Recipe, UsageError, mix, plan, read_recipe, verify
from tests import opening
from tests.checkpoints import bf16, encode, llama, moved, save

HEAD, SCORE = "lm_head.weight", "score.weight"
CAUSAL = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
LABELS = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
CLASSIFIER = {
    "architectures": ["LlamaForSequenceClassification"],
    "model_type": "llama",
    "problem_type": "single_label_classification",
    **LABELS,
}


def body(tensors):
    """Tensors without the head."""
    return {name: value for name, value in tensors.items() if name != HEAD}


def folders(tmp_path, *, post_config=CLASSIFIER, new_config=CAUSAL, **others):
    """A causal base and new base, and a post with a classifier of two labels."""
    base = llama()
    score = {SCORE: bf16(np.arange(32).reshape(2, 16))}
    sets = {
        "base": (base, CAUSAL),
        "new": (moved(base, 2), new_config),
        "post": (body(moved(base, 1)) | score, post_config),
    } | others
    return {k: str(save(tmp_path / k, t, config_json=c)) for k, (t, c) in sets.items()}


def recipe(at, *patterns, **choices):
    """A recipe of the three."""
    return Recipe(at["new"], (Delta(at["post"], at["base"]),), take_tensors=patterns, **choices)


def findings(made):
    """The tensors of each finding by its code."""
    return {finding.code: finding.tensors for finding in made.findings}


def config_of(folder):
    """config.json of an output."""
    return json.loads((folder / "config.json").read_text())


def test_a_classifier_comes_with_its_architecture_and_labels(tmp_path):
    """The head is post's, bit for bit; the language head goes; config.json says what it is."""
    at = folders(tmp_path)
    made = plan(recipe(at, "score.*"))
    assert not made.refused
    assert findings(made)["taken"] == (SCORE,)
    assert findings(made)["head-left"] == (HEAD,)
    mix(made, tmp_path / "out")
    found = opening.checkpoint(tmp_path / "out").tensors
    assert found.keys() == body(llama()).keys() | {SCORE}
    own = opening.checkpoint(at["post"]).tensors[SCORE]
    read = [view.array(0, view.elements, opening.fetch) for view in (found[SCORE], own)]
    assert np.array_equal(*read)
    assert config_of(tmp_path / "out").items() >= CLASSIFIER.items()
    assert verify(tmp_path / "out", share=1)


def test_what_is_wrong_is_found_by_verify(tmp_path):
    """A taken tensor is compared like any other."""
    at = folders(tmp_path)
    mix(recipe(at, SCORE), tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    view = opening.checkpoint(tmp_path / "out").tensors[SCORE]
    data = bytearray(path.read_bytes())
    data[view.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(MisfitError, match="not what its sources give"):
        verify(tmp_path / "out", share=1)


def test_without_it_the_plan_says_how(tmp_path):
    """The refusal of a tensor that only post has names the option."""
    made = plan(recipe(folders(tmp_path)))
    (found,) = (f for f in made.refused if f.code == "only-in-post")
    assert "`take_tensors=('score.*',)`" in found.remedy


@pytest.mark.parametrize("pattern", ["score", "score.weight", "s*", "*.weight"])
def test_names_modules_and_globs(tmp_path, pattern):
    """All three forms are understood."""
    assert SCORE in findings(plan(recipe(folders(tmp_path), pattern)))["taken"]


def test_a_pattern_that_matches_nothing(tmp_path):
    """A mistake is refused, with the nearest name."""
    with pytest.raises(UsageError, match="no tensor of post matches 'scores'") as error:
        plan(recipe(folders(tmp_path), "score.*", "scores"))
    assert error.value.code == "take-tensor-matches-nothing"


def test_of_several_posts_the_first_that_has_it(tmp_path):
    """The head and its labels are those of one post; the other's are left out."""
    base = llama()
    plain = (moved(base, 4), CAUSAL)
    other = (
        body(moved(base, 3)) | {SCORE: bf16(np.ones((3, 16)))},
        CLASSIFIER | {"id2label": {"0": "a", "1": "b", "2": "c"}},
    )
    at = folders(tmp_path, plain=plain, other=other)
    deltas = [Delta(at[name], at["base"]) for name in ("plain", "post", "other")]
    mix(Recipe(at["new"], deltas, take_tensors=("score",)), tmp_path / "out")
    assert opening.checkpoint(tmp_path / "out").tensors[SCORE].shape == (2, 16)
    assert config_of(tmp_path / "out")["id2label"] == LABELS["id2label"]


def test_a_tensor_that_both_have_is_posts(tmp_path):
    """A classifier on a classifier: with the option post's, with its labels, whatever its shape."""
    new = (
        body(moved(llama(), 2)) | {SCORE: bf16(np.ones((3, 16)))},
        CLASSIFIER | {"id2label": {"0": "a", "1": "b", "2": "c"}},
    )
    at = folders(tmp_path, new=new)
    mix(recipe(at, "score"), tmp_path / "out")
    assert opening.checkpoint(tmp_path / "out").tensors[SCORE].shape == (2, 16)
    assert config_of(tmp_path / "out")["id2label"] == LABELS["id2label"]


def test_a_bare_new_base_gets_the_names_of_the_class_with_a_head(tmp_path):
    """Without a prefix the class with the head would not find the names of its body."""
    bare = {n.removeprefix("model."): v for n, v in body(moved(llama(), 2)).items()}
    at = folders(tmp_path, new=(bare, {"architectures": ["LlamaModel"], "model_type": "llama"}))
    made = plan(recipe(at, "score"))
    assert not made.refused
    assert {t.name for t in made.tensors} == body(llama()).keys() | {SCORE}
    assert "renamed" in findings(made)


def test_layers_of_the_body_are_not_left_out(tmp_path):
    """Only heads go: a layer that post lacks is refused as ever."""
    short = {n: v for n, v in body(moved(llama(), 1)).items() if ".1." not in n}
    post = (short | {SCORE: bf16(np.ones((2, 16)))}, CLASSIFIER)
    made = plan(recipe(folders(tmp_path, post=post), "score"))
    assert "missing-in-post" in {finding.code for finding in made.refused}


def test_other_tensors_change_no_architecture(tmp_path):
    """Layers that only post has come along; heads and config.json stay as they are."""
    extra = "mtp.layers.0.weight"
    post = (moved(llama(), 1) | {extra: bf16(np.ones((4, 4)))}, CAUSAL)
    at = folders(tmp_path, post=post)
    made = plan(recipe(at, "mtp"))
    assert {t.name for t in made.tensors} == llama().keys() | {extra}
    mix(made, tmp_path / "out")
    assert config_of(tmp_path / "out")["architectures"] == CAUSAL["architectures"]


def test_the_head_of_another_family_is_refused(tmp_path):
    """A classifier's class would not find its tensors in another model."""
    at = folders(tmp_path, new_config=CAUSAL | {"model_type": "qwen2"})
    made = plan(recipe(at, "score"))
    assert "taken-from-another-family" in {finding.code for finding in made.refused}


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("SEQ_CLS", "LlamaForSequenceClassification"),
        ("TOKEN_CLS", "LlamaForTokenClassification"),
        ("CAUSAL_LM", None),
    ],
)
def test_the_task_of_an_adapter_says_its_class(tmp_path, task, kind):
    """PEFT keeps no config.json; the task type and the rows of the head say what it is.

    The base is not needed where all whole tensors are taken.
    """
    at = folders(tmp_path)
    (tmp_path / "a").mkdir()
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{q}.lora_A.weight": np.ones((2, 16), np.float32),
        f"{q}.lora_B.weight": np.ones((16, 2), np.float32),
        "base_model.model.score.weight": np.ones((3, 16), np.float32),
    }
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "task_type": task}
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(encode(tensors))
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(said))
    made = plan(Recipe(at["new"], (Delta(str(tmp_path / "a")),), take_tensors=("score",)))
    assert not made.refused
    assert ("taken-without-architecture" in findings(made)) is (kind is None)
    mix(made, tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert config["architectures"] == ([kind] if kind else CAUSAL["architectures"])
    assert len(config.get("id2label", ())) == (3 if kind else 0)
    assert (HEAD in opening.checkpoint(tmp_path / "out").tensors) is (kind is None)


def test_recipes_have_the_option(tmp_path):
    """In YAML as in Python, and back."""
    (tmp_path / "r.yaml").write_text(
        "new_base: n\ndeltas:\n- {post: p, base: b}\ntake_tensors: [score.*]\n"
    )
    found = read_recipe(tmp_path / "r.yaml")
    assert found.take_tensors == ("score.*",)
    assert found.to_dict()["take_tensors"] == ["score.*"]


@pytest.mark.hf
def test_classifiers_load(tmp_path):
    """A BERT classifier on a masked model that was trained further: everything is found on loading,
    and the head computes what post's does.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=32, intermediate_size=32, **small)
    for name in ("base", "new"):
        transformers.BertForMaskedLM(config).save_pretrained(tmp_path / name)
    post = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, id2label={0: "x", 1: "y", 2: "z"}
    )
    post.save_pretrained(tmp_path / "post")
    at = {name: str(tmp_path / name) for name in ("base", "new", "post")}
    mix(recipe(at, "classifier", "bert.pooler"), tmp_path / "out")
    model, info = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert torch.equal(model.classifier.weight, post.classifier.weight)
