"""Mutations: a fix in the planner is disabled, and the check finds what comes out.

The check shares no code with the planner, so each of the two must hold without the other. Each test
first mixes as the planner is, and the check finds nothing, or the planner refuses; then again with
one of its rules disabled. Where the planner never makes the fault any more, a test of another file
breaks a folder by hand. The 22 wrong outputs that were once made without a word:

== ==================================================== ==========================================
 # wrong output                                         test
== ==================================================== ==========================================
 1 vocab.txt split at U+2028: rows of other tokens      cannot be seen in a folder [1]_
 2 ids of SentencePiece pieces taken for rows           cannot be seen in a folder [1]_
 3 tokens of added_tokens.json without rows             test_tokens_without_rows
 4 bias of a head, other embeddings: rows not added     test_bias_without_the_new_rows
 5 2_Dense lost                                         test_files: test_embedder_that_is_not_right
 6 SentencePiece file of another name lost              test_tokenizer_lost
 7 template without tokenizer                           test_tokenizer_lost
 8 code of auto_map lost                                test_checker: code_lost
 9 custom generation code lost                          test_checker: generation_code_lost
10 config.json ends with another token                  test_end_of_the_new_base_in_config
11 generation_config.json ends with another token       test_generation_that_never_stops
12 ids of post in another vocabulary                    test_ids_of_another_vocabulary
13 two templates                                        test_templates_of_both
14 stale quantization: keys of config.json              test_quantization_that_is_no_more
   stale quantization: a file of its own                test_checker: stale_quantization_file
15 dtype and torch_dtype                                test_two_dtypes
16 vocab_size of a nested config                        test_nested_vocabulary
17 roles of special_tokens_map.json                     test_roles_of_the_new_base
18 post-processor of another vocabulary                 test_post_processor_of_another_vocabulary
19 labels, or no head, of a classifier                  test_classifier_without_its_head
20 codes of GPTQ or MLX copied, scales mixed            test_codes_mixed
21 negative variance                                    test_negative_variance
22 scales of activations left beside plain weights      test_scales_without_codes
== ==================================================== ==========================================

And of the classes E and F: test_tied_config_of_an_untied_head, test_missing_and_stray_tensors,
test_checker: adapter_beside, test_architecture: test_layers_that_predict_further_tokens.

.. [1] Nor can a Δ on another layer, other numbers of heads, or swapped post and base: nothing in
   the output tells such numbers from training. The planner's own tests are in tests/planning:
   test_wordlist, test_sentencepiece, test_depth, test_architecture, test_relatives.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from paramdelta import Delta, Recipe, Severity, mix, plan
from paramdelta.checks import check
from paramdelta.planning import companions, constants, planner
from paramdelta.planning.facts import SPECIAL
from tests.checkpoints import bf16
from tests.checks.folders import CONFIG, WORDS, edit, put, right, tokenizer
from tests.planning.test_sentencepiece import model

HERE = Path(__file__).parent
REFUSED, WARNING = Severity.REFUSED, Severity.WARNING


def weights(number, rows=24):
    """The tensors of a right folder, a little elsewhere for each number; with a head's bias."""
    start, nudge = np.random.default_rng(0), np.random.default_rng(number)
    found = {"model.embed_tokens.weight": (32, 8), "lm_head.weight": (32, 8)}
    found |= {"lm_head.bias": (32,), "model.norm.weight": (8,)}
    for layer in range(CONFIG["num_hidden_layers"]):
        found[f"model.layers.{layer}.mlp.up_proj.weight"] = (16, 8)
    values = {n: start.normal(size=s) + 0.1 * nudge.normal(size=s) for n, s in found.items()}
    return {n: v[:rows] if len(v) == 32 else v for n, v in values.items()}


def test_the_table_names_tests():
    """Every test that the docstring names is there."""
    said = set(re.findall(r"test_\w+|(?<=test_checker: )\w+", __doc__))
    files = [*HERE.glob("*.py"), *(HERE.parent / "planning").glob("*.py")]
    there = {file.stem for file in files}
    for file in HERE.glob("*.py"):
        there |= set(re.findall(r"^def _?(\w+)", file.read_text(encoding="utf-8"), re.MULTILINE))
    assert said <= there


class Trio:
    """Post, base and new base; post alone has a chat template."""

    def __init__(self, folder):
        self.folder, self.count, self.choices = folder, 0, {}
        self.base, self.post, self.new = (folder / role for role in ("base", "post", "new"))
        for number, role in enumerate((self.base, self.post, self.new)):
            right(role)
            self.put(role, weights(number))
            if role is not self.post:
                (role / "chat_template.jinja").unlink()

    def put(self, role, tensors):
        """Store weights, floats in BF16."""
        stored = {n: bf16(v) if v.dtype == np.float64 else v for n, v in tensors.items()}
        put(role, "model.safetensors", stored)

    def recipe(self):
        """The plain recipe, with the choices of the test."""
        return Recipe(str(self.new), (Delta(str(self.post), str(self.base)),), **self.choices)

    def mix(self):
        """The folder of a new mix."""
        self.count += 1
        return mix(self.recipe(), self.folder / f"out-{self.count}").folder

    def found(self):
        """What the check finds in a new mix, notes apart."""
        findings = check(self.mix()).findings
        return {f.code: f.severity for f in findings if f.severity is not Severity.NOTE}

    def refused(self):
        """What the planner refuses."""
        return {f.code for f in plan(self.recipe()).findings if f.severity is REFUSED}


@pytest.fixture
def trio(tmp_path):
    """A lineage in which nothing is wrong."""
    return Trio(tmp_path)


@pytest.fixture
def moved(trio):
    """The same; the new base has a token more, before those that all have."""
    words = [WORDS[0], "new", *WORDS[1:]]
    content = tokenizer()
    content["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    for entry in content["added_tokens"]:
        entry["id"] = words.index(entry["content"])
    content["post_processor"]["special_tokens"]["<s>"]["ids"] = [2]
    put(trio.new, "tokenizer.json", content)
    for name in ("config.json", "generation_config.json"):
        edit(trio.new, name, bos_token_id=2, eos_token_id=3, pad_token_id=0)
    return trio


# -- tokens ----------------------------------------------------------------------------------------


def test_tokens_without_rows(trio, monkeypatch):
    """Post has tokens beyond the new base's rows, and its tokenizer comes along."""
    trio.put(trio.post, weights(1, rows=32))
    edit(trio.post, "config.json", vocab_size=32)
    put(trio.post, "added_tokens.json", {f"<|{n}|>": n for n in range(len(WORDS), 30)})
    edit(trio.post, "tokenizer_config.json", eos_token="<|29|>")
    (trio.post / "special_tokens_map.json").unlink()
    assert trio.refused() or trio.found() == {}
    trio.choices["allow"] = tuple(sorted(trio.refused()))
    monkeypatch.setattr(companions, "_is_posts", lambda *_: True)
    assert trio.found()["token-without-row"] is REFUSED


@pytest.mark.hf
def test_bias_without_the_new_rows(tmp_path, monkeypatch):
    """The embedding grows by a grafted token; a tensor that the planner overlooks does not."""
    pytest.importorskip("transformers")
    from tests.integration.families import FAMILIES, save_family, save_tokenizer, without_children

    recipe = save_family(FAMILIES["BERT"], tmp_path)
    save_tokenizer(tmp_path / "post", tokens={95: "<|graft|>"})
    recipe = Recipe(recipe.new_base, recipe.deltas, graft=("<|graft|>",))
    axes = planner.token_axes

    def found(out):
        with without_children():
            return {f.code: f.severity for f in check(mix(recipe, out).folder).findings}

    assert "wrong-shapes" not in found(tmp_path / "out-1")

    def overlook(*asked):
        return {n: axis for n, axis in axes(*asked).items() if n != "cls.predictions.bias"}

    monkeypatch.setattr(planner, "token_axes", overlook)
    assert found(tmp_path / "out-2")["wrong-shapes"] is REFUSED


@pytest.mark.parametrize("lost", ["tokenizer.json", "spiece.model"])
def test_tokenizer_lost(trio, lost):
    """The output has post's template and no vocabulary, whatever its file is called."""
    if lost != "tokenizer.json":
        for role in (trio.base, trio.post, trio.new):
            (role / "tokenizer.json").unlink()
            put(role, lost, model(WORDS))
            edit(role, "tokenizer_config.json", tokenizer_class="T5Tokenizer")
    out = trio.mix()
    assert check(out).passed
    assert (out / lost).is_file()
    (out / lost).unlink()
    assert "tokenizer-missing" in {f.code for f in check(out).findings if f.severity is REFUSED}


def test_ids_of_another_vocabulary(moved, monkeypatch):
    """Post's ids are those of other tokens in the output."""
    assert moved.found() == {}
    monkeypatch.setattr(companions, "_output_ids", lambda ids, _: ids)
    assert moved.found()["template-never-stops"] is REFUSED


def test_post_processor_of_another_vocabulary(moved, monkeypatch):
    """It begins each text with the id that `<s>` had in post."""
    assert moved.found() == {}
    monkeypatch.setattr(companions, "_processor", lambda said, _: said)
    assert moved.found() == {"post-processor-wrong": REFUSED}


def test_roles_of_the_new_base(moved, monkeypatch):
    """tokenizer_config.json gets post's roles, special_tokens_map.json keeps its own."""
    edit(moved.new, "tokenizer_config.json", eos_token="<unk>")
    edit(moved.new, "special_tokens_map.json", eos_token="<unk>")
    assert moved.found() == {}
    edits = companions._edits
    monkeypatch.setattr(
        companions, "_edits", lambda name, *rest: {} if name == SPECIAL else edits(name, *rest)
    )
    assert moved.found()["roles-disagree"] is WARNING


# -- statements ------------------------------------------------------------------------------------


def test_end_of_the_new_base_in_config(trio, monkeypatch):
    """config.json keeps the new base's end, generation_config.json has post's."""
    edit(trio.new, "config.json", eos_token_id=3)
    assert trio.found() == {}
    monkeypatch.setattr(companions, "_role_ids", lambda *_: None)
    assert trio.found() == {"eos-disagrees": WARNING}


def test_generation_that_never_stops(trio, monkeypatch):
    """Post has no generation_config.json, and the new base's ends with another token."""
    (trio.post / "generation_config.json").unlink()
    edit(trio.new, "generation_config.json", eos_token_id=3)
    assert trio.found() == {}
    monkeypatch.setattr(companions, "_role_ids", lambda *_: None)
    assert trio.found()["template-never-stops"] is REFUSED


def test_templates_of_both(trio, monkeypatch):
    """Post's template is inline, and an older one of the new base has a file."""
    template = (trio.post / "chat_template.jinja").read_text(encoding="utf-8")
    edit(trio.post, "tokenizer_config.json", chat_template=template)
    (trio.post / "chat_template.jinja").unlink()
    put(trio.new, "chat_template.jinja", template.replace("|bot|", "|user|"))
    assert trio.found() == {}
    _keep(monkeypatch, "chat_template.jinja", trio.new)
    assert trio.found() == {"template-disagrees": WARNING}


def _keep(monkeypatch, name, owner):
    """Let the planner copy a file of the new base that it leaves out."""
    templates = companions._templates

    def with_it(chosen, ours, theirs, new, post):
        found = templates(chosen, ours, theirs, new, post)
        return [*found, companions.Companion(name, new.files[name], "new base", "kept")]

    monkeypatch.setattr(companions, "_templates", with_it)


STALE = {
    "text_config": {"vocab_size": 24, "quantization_config": {"quant_method": "fp8"}},
    "compression_config": {"quant_method": "compressed-tensors"},
    "quantization_config": {"quant_method": "fp8"},
}


@pytest.mark.parametrize("key", STALE)
def test_quantization_that_is_no_more(trio, monkeypatch, key):
    """The weights are plain, and config.json says what they were."""
    edit(trio.new, "config.json", **{key: STALE[key]})
    assert trio.found() == {}
    statements = companions.statements
    monkeypatch.setattr(
        companions,
        "statements",
        lambda f, files: () if f == "quantization" else statements(f, files),
    )
    assert trio.found()["quantization-untrue"] is REFUSED


def test_two_dtypes(trio, monkeypatch):
    """The new base says float32 twice, and only one of them is corrected."""
    edit(trio.new, "config.json", dtype="float32", torch_dtype="float32")
    assert trio.found() == {}
    monkeypatch.setattr(companions, "_places", lambda fact, _: [(fact,)])
    assert trio.found() == {"dtype-disagrees": WARNING}


def test_nested_vocabulary(trio, monkeypatch):
    """A grafted token: the rows are counted at the top of config.json, not in its text part."""
    for number, role in enumerate((trio.base, trio.post, trio.new)):
        rows = len(WORDS) + (role is trio.post)
        trio.put(role, weights(number, rows))
        edit(role, "config.json", vocab_size=rows)
    edit(trio.new, "config.json", text_config=CONFIG | {"vocab_size": len(WORDS)})
    content = tokenizer()
    content["added_tokens"].append({"id": 18, "content": "<|graft|>", "special": True})
    put(trio.post, "tokenizer.json", content)
    trio.choices["graft"] = ("<|graft|>",)
    assert trio.found() == {}
    places = companions.size_places
    monkeypatch.setattr(
        companions,
        "size_places",
        lambda *asked: {keys: n for keys, n in places(*asked).items() if len(keys) == 1},
    )
    assert trio.found()["vocab-size-disagrees"] is WARNING


def test_tied_config_of_an_untied_head(trio, monkeypatch):
    """Post has a head of its own; base and new base are tied, and config.json keeps saying so."""
    for number, role in ((0, trio.base), (2, trio.new)):
        tied = {n: v for n, v in weights(number).items() if not n.startswith("lm_head")}
        trio.put(role, tied)
        edit(role, "config.json", tie_word_embeddings=True)
    own = {n: v for n, v in weights(1).items() if n != "lm_head.bias"}
    trio.put(trio.post, own)
    assert trio.found() == {}
    settle = planner.settle_head
    monkeypatch.setattr(planner, "settle_head", lambda *asked: (settle(*asked)[0], None))
    assert trio.found()["head-disagrees"] is REFUSED


# -- numbers and tensors ---------------------------------------------------------------------------


def _add(trio, extra):
    for number, role in enumerate((trio.base, trio.post, trio.new)):
        trio.put(role, weights(number) | extra(number))


def test_negative_variance(trio, monkeypatch):
    """1 (new base) + 0.1 (post) − 2 (base)."""
    _add(trio, lambda n: {"bn.running_var": np.full(8, (2, 0.1, 1)[n], np.float32)})
    assert trio.refused() == {"variance-negative"}
    monkeypatch.setattr(planner, "check_statistics", lambda *_: None)
    assert trio.found()["negative-variance"] is REFUSED


def test_codes_mixed(trio, monkeypatch):
    """GPTQ without quantization_config: codes are the new base's, scales a sum."""

    def codes(number):
        drawn = np.random.default_rng(number).integers(0, 2**31 - 1, (4, 32), dtype=np.int32)
        stem = "model.layers.0.mlp.down_proj"
        return {
            f"{stem}.qweight": drawn,
            f"{stem}.qzeros": drawn[:1, :4].copy(),
            f"{stem}.scales": np.full((1, 32), 0.1 + number, np.float16),
            f"{stem}.g_idx": np.zeros(32, np.int32),
        }

    _add(trio, codes)
    assert "quantized" in trio.refused()
    monkeypatch.setattr(constants, "refuse_quantized", lambda *_: None)
    assert trio.found()["quantization-unstated"] is REFUSED


def test_scales_without_codes(trio):
    """Static scales of activations stay where the weights are plain."""
    out = trio.mix()
    name = "model.layers.0.mlp.up_proj.activation_scale"
    stored = {n: bf16(v) for n, v in weights(0).items()} | {name: np.ones((), np.float32)}
    put(out, "model.safetensors", stored)
    assert "scale-without-codes" in {f.code for f in check(out).findings if f.severity is REFUSED}


@pytest.mark.hf
@pytest.mark.parametrize("name", ["RoBERTa as a classifier", "Mamba 2", "Chameleon"])
def test_missing_and_stray_tensors(tmp_path, name):
    """One tensor lost, one under another name: both are seen by the library's own class."""
    pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    from tests.integration.families import FAMILIES, save_family, without_children

    out = mix(save_family(FAMILIES[name], tmp_path), tmp_path / "out").folder
    state = load_file(out / "model.safetensors")
    lost = sorted(state)[0]
    state[f"{lost}.old"] = state.pop(lost)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    with without_children():
        found = {f.code: f for f in check(out).findings}
    assert found["missing-tensors"].severity is REFUSED
    assert found["missing-tensors"].tensors == (lost,)
    assert found["unexpected-tensors"].tensors == (f"{lost}.old",)


@pytest.mark.hf
def test_classifier_without_its_head(tmp_path):
    """config.json names the class of post, and the weights are those of the new base; then labels
    that are not as many as the head has rows.
    """
    pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    from tests.integration.families import FAMILIES, save_family, without_children

    out = mix(save_family(FAMILIES["RoBERTa as a classifier"], tmp_path), tmp_path / "out").folder
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    labels = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    put(out, "config.json", config | labels)
    with without_children():
        assert "wrong-shapes" in {f.code for f in check(out).findings if f.severity is REFUSED}
    put(out, "config.json", config)
    state = load_file(out / "model.safetensors")
    kept = {n: v for n, v in state.items() if not n.startswith("classifier")}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    with without_children():
        found = {f.code: f for f in check(out).findings}
    assert found["missing-tensors"].severity is REFUSED
