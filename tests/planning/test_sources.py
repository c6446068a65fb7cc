"""Sources are values: a step returns others and leaves its own as they are."""

import json

import numpy as np
import pytest

from paramdelta import Delta, Recipe, UsageError
from paramdelta.planning.alignment import align_names, join_repeats
from paramdelta.planning.findings import Findings
from paramdelta.planning.heads import settle_head
from paramdelta.planning.sources import Opener, open_sources
from paramdelta.storage.reader import Reader
from tests.checkpoints import encode, llama, moved, save

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TIED = {"tie_word_embeddings": True}


def opened(tmp_path, post, base, new, **choices):
    """The sources of a recipe for these tensors."""
    sets = {"post": post, "base": base, "new": new}
    paths = {k: str(save(tmp_path / k, v, config_json=TIED)) for k, v in sets.items()}
    recipe = Recipe(paths["new"], (Delta(paths["post"], paths["base"]),), **choices)
    return open_sources(recipe, Opener(Reader()), Findings())


def names(sources):
    """The names of all tensors, source by source."""
    return [list(source.views) for source in sources.all]


def test_steps_do_not_change_what_they_are_given(tmp_path):
    """Names, repeats and heads are settled in new values."""
    base = {name: value for name, value in llama().items() if name != HEAD}
    post = {name.removeprefix("model."): value for name, value in moved(base, 1).items()}
    sources = opened(tmp_path, post, base, moved(llama(), 2))
    before = names(sources)
    aligned = align_names(sources, (), Findings())
    joined = join_repeats(aligned, Findings())
    settled, tied = settle_head(joined, "untie", Findings())
    assert names(sources) == before
    assert names(aligned)[1] != before[1]
    assert tied is False
    assert [HEAD in found for found in names(aligned)] == [True, False, False]
    assert [HEAD in found for found in names(settled)] == [True, True, True]


def test_replaced_keeps_each_in_its_place(tmp_path):
    """The sources come back in the order of `all`; a wrong number is an error."""
    sources = opened(tmp_path, moved(llama(), 1), llama(), moved(llama(), 2))
    again = sources.replaced(sources.all)
    assert [again.new, *again.others] == sources.all
    with pytest.raises(ValueError, match="zip"):
        sources.replaced([sources.new])


def test_a_new_base_without_embedding_and_head(tmp_path):
    """The head of others is not put on it: the findings about missing names say what is wrong."""
    base = llama()
    bare = {name: value for name, value in base.items() if name not in (HEAD, EMBEDDING)}
    sources = opened(tmp_path, moved(base, 1), base, bare)
    findings = Findings()
    settled, tied = settle_head(sources, "untie", findings)
    assert (names(settled), tied) == (names(sources), None)


def test_posts_rows_cannot_be_taken_from_a_stored_delta(tmp_path):
    """Refused before the Δ is opened."""
    new = str(save(tmp_path / "new", llama()))
    (tmp_path / "delta").mkdir()
    recipe = Recipe(new, (Delta(delta=str(tmp_path / "delta")),), take=("x",))
    with pytest.raises(UsageError, match="does not hold post's rows"):
        open_sources(recipe, Opener(Reader()), Findings())


# -- adapters --------------------------------------------------------------------------------------

Q = "model.layers.0.self_attn.q_proj"


def adapter(folder, tensors=None, **config):
    """Write a LoRA adapter; ``tensors``: beside the factors of one layer."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"base_model.model.{Q}.lora_"
    factors = {f"{stem}A.weight": np.ones((2, 16), np.float32)}
    factors[f"{stem}B.weight"] = np.ones((16, 2), np.float32)
    others = {f"base_model.model.{name}": value for name, value in (tensors or {}).items()}
    (folder / "adapter_model.safetensors").write_bytes(encode(factors | others))
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return str(folder)


@pytest.fixture
def places(tmp_path):
    """A new base, a base and a post, and an adapter."""
    base = llama()
    sets = {"new": moved(base, 2), "base": base, "post": moved(base, 1)}
    return {k: str(save(tmp_path / k, v, config_json={})) for k, v in sets.items()} | {
        "adapter": adapter(tmp_path / "adapter")
    }


def sources_of(new, post, base=None, **choices):
    """The sources of a recipe, and the codes of the findings."""
    findings = Findings()
    recipe = Recipe(new, (Delta(post, base),), **choices)
    found = open_sources(recipe, Opener(Reader()), findings)
    return found, [finding.code for finding in findings.all(())]


@pytest.mark.parametrize("role", ["new", "base"])
def test_an_adapter_is_not_a_model(places, role):
    """As new base or base it is named for what it is."""
    given = places | {role: places["adapter"]}
    with pytest.raises(UsageError, match="an adapter and not a whole model") as error:
        sources_of(given["new"], given["post"], given["base"])
    assert error.value.code == "adapter-as-model"


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{Q}.lora_A.weight",
        f"{Q}.lora_a",
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
        "transformer.layers.0.to_q.lora.up.weight",
    ],
)
@pytest.mark.parametrize("with_base", [True, False])
def test_the_file_of_an_adapter_is_not_a_model(tmp_path, places, name, with_base):
    """Of PEFT, MLX-LM, kohya and diffusers: told before anything else is asked for."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(encode({name: np.ones((2, 4), np.float32)}))
    with pytest.raises(UsageError, match="tensors of a LoRA adapter"):
        sources_of(places["new"], str(file), places["base"] if with_base else None)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_an_adapter_beside_a_model_is_told(tmp_path, places, weights):
    """Merged weights beside the adapter that was merged: one is taken, and it is said which."""
    post = tmp_path / "post"
    adapter(post)
    if weights.endswith(".bin"):
        torch = pytest.importorskip("torch")
        torch.save({Q + ".weight": torch.ones(16, 16)}, post / weights)
        (post / "model.safetensors").unlink()
    found, codes = sources_of(places["new"], str(post), places["base"])
    assert "adapter-beside-weights" in codes
    assert Q + ".weight" in found.lineages[0].post.views


@pytest.mark.parametrize(
    "named", ["/root/models/llama", "C:\\models\\llama", "../nowhere", "", None]
)
def test_a_base_that_is_not_here_is_asked_for(tmp_path, places, named):
    """The path of another machine in adapter_config.json: `base` is the way on."""
    head = {"lm_head.weight": np.ones((32, 16), np.float32)}
    post = adapter(tmp_path / "a", head, base_model_name_or_path=named)
    with pytest.raises(UsageError, match="whole tensors") as error:
        sources_of(places["new"], post)
    assert error.value.code == "missing-base"
    assert "`base`" in error.value.expected
    assert sources_of(places["new"], post, places["base"])[0].lineages[0].base is not None


def test_the_base_that_an_adapter_names_is_said(tmp_path, places):
    """It is opened where it is needed only, and the plan says so."""
    head = {"lm_head.weight": np.ones((32, 16), np.float32)}
    post = adapter(tmp_path / "a", head, base_model_name_or_path=places["base"])
    found, codes = sources_of(places["new"], post)
    assert codes == ["base-of-adapter"]
    assert found.lineages[0].base.checkpoint.location.url == places["base"]
    found, codes = sources_of(places["new"], places["adapter"])
    assert (found.lineages[0].base, codes) == (None, [])


def test_names_of_an_adapter_and_of_its_base_may_differ_by_a_prefix(tmp_path, places):
    """A base that was saved as a bare model: rows are put into its embedding all the same."""
    bare = {n.removeprefix("model."): v for n, v in llama().items()}
    base = str(save(tmp_path / "bare", bare, config_json={}))
    name = "model.embed_tokens.token_adapter.trainable_tokens_delta"
    rows = {name: np.ones((2, 16), np.float32)}
    post = adapter(tmp_path / "a", rows, trainable_token_indices=[3, 5])
    found, _ = sources_of(places["new"], post, base)
    assert list(found.lineages[0].post.views) == ["embed_tokens.weight"]
