"""Post and base in one layout, the new base in another: the same weights under other names.

What transformers can write in two ways (``save_original_format``) it writes itself; the layouts of
experts that it only reads are made here from the ones that it writes.
"""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from paramdelta import Delta, Recipe, mix, plan, verify  # noqa: E402
from tests.integration.families import (  # noqa: E402
    FAMILIES,
    ROLES,
    build_models,
    differences,
    expected_state,
    load,
    quantize,
    read_state,
    widened,
)

pytestmark = pytest.mark.hf

# -- experts one by one, from joined ones that are turned ------------------------------------------


def split_llama4(state):
    """Llama 4's joined and turned experts, (E, H, 2 I) with gate first, one by one."""
    return _split(state, lambda joined: joined.chunk(2, -1))


def _split(state, halves):
    result = {}
    for name, value in state.items():
        stem, _, part = name.rpartition(".")
        if not part.startswith(("gate_up_proj", "down_proj")) or not stem.endswith("experts"):
            result[name] = value
            continue
        kind = "bias" if part.endswith("_bias") else "weight"
        part = part.removesuffix("_bias")
        named = {"down_proj": value}
        if part == "gate_up_proj":
            gate, up = halves(value)
            named = {"gate_proj": gate, "up_proj": up}
        for part_name, experts in named.items():
            for number, expert in enumerate(experts):
                turned = expert.T if kind == "weight" else expert
                result[f"{stem}.{number}.{part_name}.{kind}"] = turned.contiguous()
    return result


def as_on_the_hub(state):
    """GPT-2 as it was first released: without the prefix, with the causal masks."""
    result = {name.removeprefix("transformer."): value for name, value in state.items()}
    mask = torch.tril(torch.ones(64, 64)).reshape(1, 1, 64, 64)
    return result | {f"h.{layer}.attn.bias": mask.clone() for layer in range(2)}


def as_from_tensorflow(state):
    """BERT as it was first released: what norms hold is called gamma and beta."""
    old = {"weight": "gamma", "bias": "beta"}
    return {
        f"{stem}.{old[part]}" if stem.endswith("LayerNorm") else name: value
        for name, value in state.items()
        for stem, _, part in [name.rpartition(".")]
    }


# By family what makes the other layout of the one that transformers writes; None where it writes
# both.
LAYOUTS = {
    "Mixtral": None,
    "Qwen3-MoE": None,
    "Gemma 3 with vision": None,
    "Llama 4": split_llama4,
    "GPT-2": as_on_the_hub,
    "BERT": as_from_tensorflow,
}
# Where a layout is not known a rule says it, by the layout of the new base.
NORMS = ("*.LayerNorm.gamma -> *.LayerNorm.weight", "*.LayerNorm.beta -> *.LayerNorm.bias")
MAPS = {
    "Gemma 3 with vision": {"original": ("auto",), "other": ("auto",)},
    "BERT": {
        "original": NORMS,
        "other": tuple(" -> ".join(reversed(rule.split(" -> "))) for rule in NORMS),
    },
}
READ = ("GPT-2", "BERT")  # transformers reads the other layout, though it does not write it


def save_layouts(name, folder):
    """Save every role of a family in both layouts: ``folder/role-original`` and ``role-other``."""
    family, other = FAMILIES[name], LAYOUTS[name]
    for role, model in build_models(family).items():
        model.save_pretrained(folder / f"{role}-original", save_original_format=True)
        model.save_pretrained(folder / f"{role}-other", save_original_format=False)
        path = folder / f"{role}-other" / "model.safetensors"
        if other is not None:
            save_file(other(load_file(path)), path, metadata={"format": "pt"})
    return family


@pytest.mark.parametrize("layouts", [("original", "other"), ("other", "original")])
@pytest.mark.parametrize("name", LAYOUTS)
def test_output_has_the_new_bases_layout(tmp_path, name, layouts):
    """Names, shapes and values are those of a mix of three checkpoints in the new base's layout."""
    theirs, ours = layouts
    family = save_layouts(name, tmp_path)
    folders = {role: tmp_path / f"{role}-{ours}" for role in ROLES}
    states = {role: read_state(folder) for role, folder in folders.items()}
    assert states["post"].keys() != read_state(tmp_path / f"post-{theirs}").keys()
    dtypes = {key: value.dtype for key, value in states["new"].items()}

    delta = Delta(str(tmp_path / f"post-{theirs}"), str(tmp_path / f"base-{theirs}"))
    recipe = Recipe(str(folders["new"]), (delta,), maps=MAPS.get(name, {}).get(ours, ()))
    findings = [f for f in plan(recipe).findings if f.severity.value != "note"]
    assert findings == []
    out = mix(recipe, tmp_path / "out").folder
    verify(out, share=1.0)
    assert differences(read_state(out), expected_state(states, dtypes)) == []
    if ours == "original" or LAYOUTS[name] is None or name in READ:
        _, said = load(family.auto, out)
        assert said == []


@pytest.mark.parametrize("layouts", [("original", "other"), ("other", "original")])
def test_quantized_experts_against_joined_ones(tmp_path, layouts):
    """FP8 experts one by one, each with its scales, against joined ones in BF16; either way round.

    The reference is computed from the loaded models, the quantized ones loaded in float64.
    """
    theirs, ours = layouts
    family = save_layouts("Qwen3-MoE", tmp_path)
    folders = {"new": tmp_path / f"new-{ours}"}
    folders |= {role: tmp_path / f"{role}-{theirs}" for role in ("post", "base")}
    for folder in folders.values():
        if folder.name.endswith("original"):
            quantize(folder, "block")
    delta = Delta(str(folders["post"]), str(folders["base"]))
    recipe = Recipe(str(folders["new"]), (delta,))
    assert [f for f in plan(recipe).findings if f.severity.value != "note"] == []
    out = mix(recipe, tmp_path / "out").folder
    verify(out, share=1.0)
    model, said = load(family.auto, out)
    assert said == []
    states = {}
    for role, folder in folders.items():
        wide = widened(folder, tmp_path / f"{role}-wide")
        states[role] = load(family.auto, wide, dtype=torch.float64)[0].state_dict()
    dtypes = dict.fromkeys(states["new"], torch.bfloat16)
    assert differences(model.state_dict(), expected_state(states, dtypes)) == []


# -- a text model's Δ onto the text tower of a vision-language model -------------------------------


ORIGINAL, CURRENT = "language_model.model.", "model.language_model."


def save_towers(folder, tower):
    """Text-only Gemma 3 as base and post, and a Gemma 3 with vision whose text tower continues the
    same base, stored under either name.
    """
    models = build_models(FAMILIES["Gemma 3"])
    seeing = build_models(FAMILIES["Gemma 3 with vision"])["new"]
    seeing.model.language_model.load_state_dict(models.pop("new").model.state_dict())
    seeing.save_pretrained(folder / "new", save_original_format=tower == ORIGINAL)
    for role, model in models.items():
        model.save_pretrained(folder / role)


@pytest.mark.parametrize("rule", ["{0}* -> {1}*", "auto", None])
@pytest.mark.parametrize("tower", [ORIGINAL, CURRENT])
def test_delta_of_a_text_model_onto_a_text_tower(tmp_path, tower, rule):
    """The text tower gets the Δ, vision tower and projector stay the new base's, all of it loads.

    That nothing of post speaks of the vision tower is worth a warning, and refuses nothing. Where
    the tower's name is only a prefix before the old one, no rule is needed.
    """
    save_towers(tmp_path, tower)
    delta = Delta(str(tmp_path / "post"), str(tmp_path / "base"))
    maps = (rule.format("model.", tower),) if rule else ()
    recipe = Recipe(str(tmp_path / "new"), (delta,), maps=maps)
    if rule is None and tower == CURRENT:
        assert plan(recipe).refused
        return
    grave = [f.code for f in plan(recipe).findings if f.severity.value != "note"]
    assert grave == ["only-in-new-base"]
    out = mix(recipe, tmp_path / "out").folder
    verify(out, share=1.0)

    new = read_state(tmp_path / "new")
    states = {"new": new}
    for role in ("post", "base"):
        text = read_state(tmp_path / role)
        states[role] = {tower + name.removeprefix("model."): v for name, v in text.items()}
    assert states["post"].keys() == {name for name in new if name.startswith(tower)}
    mixed = expected_state(states, dict.fromkeys(states["post"], torch.bfloat16))
    assert differences(read_state(out), new | mixed) == []
    _, said = load("AutoModelForImageTextToText", out)
    assert said == []
