"""Tied and untied output heads in every combination of the three checkpoints."""

import itertools
import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from paramdelta import Delta, Recipe, mix, plan, verify  # noqa: E402
from tests.integration.families import (  # noqa: E402
    DECODER,
    FAMILIES,
    ROLES,
    build_models,
    differences,
    expected_state,
    load,
    nudged,
    read_state,
    save_family,
)

pytestmark = pytest.mark.hf

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def _cases():
    """Each of the three untied, tied, or tied with its head stored all the same."""
    for kinds in itertools.product(("tied", "stored", "untied"), repeat=3):
        kind = dict(zip(ROLES, kinds, strict=True))
        yield pytest.param(kind, id="-".join(f"{role}_{k}" for role, k in kind.items()))


def make(folder, kinds):
    """Save the three; return their weights, a tied model's head being its embedding."""
    torch.manual_seed(0)
    models = {
        role: transformers.AutoModelForCausalLM.from_config(
            transformers.Qwen2Config(**DECODER, tie_word_embeddings=kind != "untied")
        ).to(torch.bfloat16)
        for role, kind in kinds.items()
    }
    start = models["base"].state_dict()
    states = {}
    for seed, (role, model) in enumerate(models.items()):
        state = nudged(start, seed)
        if kinds[role] != "untied":
            state[HEAD] = state[EMBEDDING]
        model.load_state_dict(state)
        model.save_pretrained(folder / role)
        path = folder / role / "model.safetensors"
        stored = load_file(path)
        assert (HEAD in stored) == (kinds[role] == "untied")
        if kinds[role] == "stored":
            save_file(stored | {HEAD: state[HEAD].clone()}, path, metadata={"format": "pt"})
        states[role] = state
    return states


@pytest.mark.parametrize("kinds", list(_cases()))
def test_output_is_tied_if_all_are(tmp_path, kinds):
    """All tied: the output is tied and stores no head. One untied: it has a head of its own, whose
    Δ is that of the embedding where a source is tied. Either way config says so and it loads.
    """
    states = make(tmp_path, kinds)
    recipe = Recipe(str(tmp_path / "new"), (Delta(str(tmp_path / "post"), str(tmp_path / "base")),))
    assert [f for f in plan(recipe).findings if f.severity.value == "refused"] == []
    out = mix(recipe, tmp_path / "out").folder
    verify(out, share=1.0)

    tied = "untied" not in kinds.values()
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] == tied
    stored = read_state(out)
    expected = expected_state(states, dict.fromkeys(states["new"], torch.bfloat16))
    reference = dict(expected)
    if tied:
        del reference[HEAD]
    assert differences(stored, reference) == []

    model, said = load("AutoModelForCausalLM", out)
    assert said == []
    assert differences(model.state_dict(), expected) == []
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


# -- every name of a shared tensor -----------------------------------------------------------------


@pytest.mark.parametrize("roles", ["new", "post", "base", "post base", "new post base"])
@pytest.mark.parametrize("name", ["Qwen2.5", "GPT-2", "BERT", "T5", "Whisper", "Gemma 3"])
def test_pickles_hold_every_name_of_a_shared_tensor(tmp_path, name, roles):
    """A pickled state names a shared tensor as often as the model does, save_pretrained once. What
    is shared in memory gets one Δ whichever of the three are pickles, and loads without a word.
    """
    family = FAMILIES[name]
    recipe = save_family(family, tmp_path)
    models = build_models(family)
    for role in roles.split():
        (tmp_path / role / "model.safetensors").unlink()
        torch.save(models[role].state_dict(), tmp_path / role / "pytorch_model.bin")
    assert [f for f in plan(recipe).findings if f.severity.value != "note"] == []
    out = mix(recipe, tmp_path / "out").folder
    verify(out, share=1.0)
    model, said = load(family.auto, out)
    assert said == []
    found = model.state_dict()
    states = {role: model.state_dict() for role, model in models.items()}
    dtypes = {name: value.dtype for name, value in found.items()}
    assert differences(found, expected_state(states, dtypes)) == []
