"""Output heads: tied, stored under another name, or changed by an adapter, as PEFT changes it."""

import warnings

import numpy as np
import pytest

from paramdelta import Delta, Recipe, mix, plan
from tests.checkpoints import llama, moved, save

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TIED = {"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}
Q = ["q_proj"]


def codes(made):
    """The codes of a plan's findings, with their severity."""
    return {(finding.severity.name, finding.code) for finding in made.findings}


# -- adapters to tied models, against PEFT ---------------------------------------------------------

CHANGES = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding, tie kept": {
        "target_modules": ["embed_tokens", "q_proj"],
        "ensure_weight_tying": True,
    },
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "embedding, DoRA": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "saved embedding": {"target_modules": Q, "modules_to_save": ["embed_tokens"]},
    "saved embedding, tie kept": {
        "target_modules": Q,
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "saved head": {"target_modules": Q, "modules_to_save": ["lm_head"]},
    "saved both": {"target_modules": Q, "modules_to_save": ["lm_head", "embed_tokens"]},
    "rows": {"target_modules": Q, "trainable_token_indices": [1, 20]},
    "rows of both": {
        "target_modules": Q,
        "trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 2]},
    },
    "other rows of the head": {
        "target_modules": Q,
        "trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [3]},
    },
    "rows of the head": {"target_modules": Q, "trainable_token_indices": {"lm_head": [3]}},
}
STAYS_TIED = {
    *("embedding, tie kept", "saved embedding, tie kept", "rows", "rows of both"),
}


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A tiny tied Llama in float64, saved."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=24,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("tied")
    transformers.LlamaForCausalLM(config).double().save_pretrained(folder)
    return folder


def logits(folder):
    """What a model makes of a few tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        return model(torch.arange(10)[None]).logits.numpy()


def adapted(tied, folder, **config):
    """Save a random adapter; the logits of base and adapter together, not merged."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float64)
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, **config))
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn_like(parameter))
            model.save_pretrained(folder)
            return model.eval()(torch.arange(10)[None]).logits.numpy()


@pytest.mark.hf
@pytest.mark.parametrize("kind", CHANGES)
def test_adapters_to_a_tied_model_compute_what_peft_computes(tmp_path, tied, kind):
    """Onto its own base, an adapter gives the logits of PEFT's unmerged model, to 1e-12.

    PEFT's merge is no reference here: it changes both tensors where PEFT changes one.
    """
    expected = adapted(tied, tmp_path / "adapter", **CHANGES[kind])
    recipe = Recipe(str(tied), (Delta(str(tmp_path / "adapter"), str(tied)),))
    made = plan(recipe)
    mix(made, tmp_path / "out")
    stays = kind in STAYS_TIED
    assert (("WARNING", "untied") in codes(made)) is not stays
    assert (HEAD in {tensor.name for tensor in made.tensors}) is not stays
    np.testing.assert_allclose(logits(tmp_path / "out"), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.hf
@pytest.mark.parametrize("kind", ["embedding", "head", "saved head"])
def test_a_tie_can_be_kept(tmp_path, tied, kind):
    """With `head='drop'` the output stays tied, and what is lost or spread is said."""
    adapted(tied, tmp_path / "adapter", **CHANGES[kind])
    recipe = Recipe(str(tied), (Delta(str(tmp_path / "adapter"), str(tied)),), head="drop")
    made = plan(recipe)
    code = "adapted-embedding" if kind == "embedding" else "head-dropped"
    assert ("WARNING", code) in codes(made)
    assert HEAD not in {tensor.name for tensor in made.tensors}


# -- by hand ---------------------------------------------------------------------------------------


def adapter(folder, name, rank=2):
    """A LoRA adapter of one embedding."""
    import json

    from tests.checkpoints import encode

    folder.mkdir()
    stem = f"base_model.model.{name.removesuffix('.weight')}.lora_embedding_"
    ones = np.ones((rank, 32), np.float32), np.ones((16, rank), np.float32)
    tensors = {stem + half: factor for half, factor in zip("AB", ones, strict=True)}
    (folder / "adapter_model.safetensors").write_bytes(encode(tensors))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def renamed(tensors, old, new):
    """Tensors without a head, with other starts of their names."""
    return {name.replace(old, new, 1): value for name, value in tensors.items() if name != HEAD}


@pytest.mark.parametrize(
    ("start", "head"),
    [
        ("model.", "lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
        ("language_model.model.", "language_model.lm_head.weight"),
        ("model.decoder.", "lm_head.weight"),
    ],
)
def test_the_head_of_an_untied_model_is_beside_it(tmp_path, start, head):
    """A head that nobody stores gets the name that the model class gives it."""
    tensors = renamed(llama(), "model.", start)
    new = save(tmp_path / "new", tensors, config_json=TIED)
    post = adapter(tmp_path / "post", f"{start}embed_tokens.weight")
    made = plan(Recipe(str(new), (Delta(post),)))
    assert head in {tensor.name for tensor in made.tensors}
    assert ("WARNING", "untied") in codes(made)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        {"architectures": ["BertForMaskedLM"]},
    ],
)
def test_an_architecture_without_a_head_of_its_own_is_refused(tmp_path, config):
    """Where the head cannot be untied, the adapter cannot be right: refused, or accepted."""
    new = save(tmp_path / "new", renamed(llama(), "model.", ""), config_json=TIED | config)
    post = adapter(tmp_path / "post", "embed_tokens.weight")
    recipe = Recipe(str(new), (Delta(post),))
    assert ("REFUSED", "adapted-embedding") in codes(plan(recipe))
    allowed = Recipe(str(new), (Delta(post),), allow=("adapted-embedding",))
    assert not plan(allowed).refused


@pytest.mark.parametrize("kind", ["LlamaModel", "LlamaForSequenceClassification"])
def test_a_model_without_a_head_stays_so(tmp_path, kind):
    """The embedding of an encoder or a classifier is nothing but an embedding."""
    config = TIED | {"architectures": [kind]}
    new = save(tmp_path / "new", renamed(llama(), "model.", "model."), config_json=config)
    made = plan(Recipe(str(new), (Delta(adapter(tmp_path / "post", EMBEDDING)),)))
    assert HEAD not in {tensor.name for tensor in made.tensors}
    assert not {code for _, code in codes(made)} & {"untied", "adapted-embedding"}


def test_a_tied_tensor_that_is_stored_as_the_head(tmp_path):
    """Some checkpoints store the tied tensor under the head's name: it is the embedding."""
    tensors = {n: v for n, v in llama().items() if n != HEAD}
    stored = {(HEAD if n == EMBEDDING else n): v for n, v in moved(tensors, 2).items()}
    new = save(tmp_path / "new", stored, config_json=TIED)
    base = save(tmp_path / "base", tensors, config_json=TIED)
    post = save(tmp_path / "post", moved(tensors, 1), config_json=TIED)
    made = plan(Recipe(str(new), (Delta(str(post), str(base)),)))
    found = {tensor.name: tensor for tensor in made.tensors}
    assert HEAD not in found
    assert found[EMBEDDING].mixed
    assert ("NOTE", "stored-as-head") in codes(made)
    assert not made.refused


@pytest.mark.parametrize("tie", [True, None])
def test_an_untied_text_post_on_a_tied_multimodal_model(tmp_path, tie):
    """No crash without `maps`; with them the output gets a head (the reported KeyError)."""
    text = {n: v for n, v in llama().items() if n != HEAD}
    new = renamed(moved(text, 2), "model.", "model.language_model.")
    config = {"model_type": "some_vl", "text_config": TIED}
    config |= {"tie_word_embeddings": tie} if tie is not None else {}
    folders = {
        "new": save(tmp_path / "new", new, config_json=config),
        "base": save(tmp_path / "base", text, config_json=TIED),
        "post": save(
            tmp_path / "post", moved(llama(), 1), config_json=TIED | {"tie_word_embeddings": False}
        ),
    }
    delta = (Delta(str(folders["post"]), str(folders["base"])),)
    assert plan(Recipe(str(folders["new"]), delta)).refused
    made = plan(Recipe(str(folders["new"]), delta, maps=("auto",)))
    assert not made.refused
    assert HEAD in {tensor.name for tensor in made.tensors}
    assert ("WARNING", "untied") in codes(made)


@pytest.mark.parametrize("stored", ["head", "embedding"])
def test_one_of_head_and_embedding_in_one_source_only(tmp_path, stored):
    """Any of the three may lack either tensor: findings, and no crash."""
    whole = llama()
    part = {n: v for n, v in whole.items() if n != (EMBEDDING if stored == "head" else HEAD)}
    for said in (True, False, None):
        config = {} if said is None else {"tie_word_embeddings": said}
        for odd in ("new", "base", "post"):
            sets = {"new": moved(whole, 2), "base": whole, "post": moved(whole, 1)}
            sets[odd] = part
            place = tmp_path / f"{said}-{odd}"
            at = {k: str(save(place / k, v, config_json=config)) for k, v in sets.items()}
            plan(Recipe(at["new"], (Delta(at["post"], at["base"]),)))
