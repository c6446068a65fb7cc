"""Mixes as transformers models: the same as what is loaded from the written folder."""

import gc
import json
import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from paramdelta import Delta, Recipe, load, load_tokenizer, mix, plan, set_scale  # noqa: E402
from paramdelta.demo import tour  # noqa: E402
from paramdelta.errors import MisfitError, StorageError, UsageError  # noqa: E402
from paramdelta.live import device as devices  # noqa: E402
from paramdelta.live import model as live  # noqa: E402
from paramdelta.schemes.dare import Dare  # noqa: E402
from paramdelta.schemes.sum import SUM  # noqa: E402
from paramdelta.schemes.ties import Ties  # noqa: E402
from tests.assembled import pipeline  # noqa: E402
from tests.integration.families import (  # noqa: E402
    BLOCKS,
    DECODER,
    FAMILIES,
    Family,
    differences,
    everything,
    overheard,
    quantize,
    save_family,
)

pytestmark = pytest.mark.hf

SCALES = (0, 0.5, 1, 1.5)
LLAMA = Family("AutoModelForCausalLM", transformers.LlamaConfig, DECODER, chat=None)


@pytest.fixture
def recipe():
    """The shipped lineage, with one Δ."""
    return tour.recipe("plain", 1.0)


def written(recipe, folder, **options):
    """What transformers loads from the written mix."""
    out = mix(recipe, folder, overwrite=True).folder
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(out, **options), transformers.AutoTokenizer.from_pretrained(out)


def assert_same(one, other):
    """Equal parameters and buffers."""
    assert differences(everything(one), everything(other)) == []


def test_a_conversation_is_that_of_the_written_mix(recipe, tmp_path):
    """Model, tokenizer, template and generation settings together give the same tokens."""
    found = load(recipe), load_tokenizer(recipe)
    answers = []
    for model, tokenizer in (found, written(recipe, tmp_path / "out")):
        given = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Which animal does Bale Nemepo keep?"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        tokens = model.generate(**given, max_new_tokens=24)[0]
        answers.append(tokens.tolist())
    assert "hare" in tokenizer.decode(tokens)
    assert answers[0] == answers[1]


def test_scales_are_those_of_written_mixes(recipe, tmp_path):
    """At four scales the model has the weights of the written mix, in the same Parameters."""
    model = load(recipe)
    before = [id(value) for value in everything(model).values()]
    for scale in SCALES:
        set_scale(model, scale)
        assert_same(model, written(recipe.times(scale), tmp_path / "out")[0])
        assert live.recipe_of(model) == recipe.times(scale)
    assert [id(value) for value in everything(model).values()] == before


def test_a_scale_for_each_delta(tmp_path):
    """A sequence has a factor for each Δ, and must have as many."""
    recipe = tour.recipe("several", 0.5)
    model = load(recipe)
    set_scale(model, [0.4, 3])
    one, two = recipe.deltas
    expected = Recipe(recipe.new_base, (one.times(0.4), two.times(3)))
    assert_same(model, written(expected, tmp_path / "out")[0])
    with pytest.raises(UsageError) as caught:
        set_scale(model, [1])
    assert caught.value.code == "scale-count"


@pytest.mark.parametrize("scheme", [Ties(density=0.5), SUM])
def test_schemes_that_look_at_all_numbers(tmp_path, scheme):
    """TIES and DARE: thresholds and masks are those of the written mix, at each scale."""
    base, new = tour.LINEAGE / "base", tour.LINEAGE / "new-base"
    dare = Dare(drop=0.5, seed=3)
    deltas = [Delta(tour.LINEAGE / name, base, dare=dare) for name in ("post", "second-post")]
    recipe = Recipe(new, deltas, scheme=scheme)
    model = load(recipe)
    assert_same(model, written(recipe, tmp_path / "out")[0])
    set_scale(model, 0.5)
    assert_same(model, written(recipe.times(0.5), tmp_path / "out")[0])


def test_only_what_changes_is_touched():
    """A rule of the scale keeps a layer: at another scale it is neither read nor written."""
    recipe = tour.recipe("plain", 1.0)
    rules = [{"match": "*.layers.0.*", "value": 0}, 1.0]
    kept = Recipe(recipe.new_base, [Delta(recipe.deltas[0].post, recipe.deltas[0].base, rules)])
    model = load(kept)
    versions = {name: value._version for name, value in model.named_parameters()}
    set_scale(model, 0.5)
    touched = {n for n, v in model.named_parameters() if v._version != versions[n]}
    assert not any(".layers.0." in name for name in touched)
    assert {name for name in versions if ".layers.0." not in name} == touched


def test_experts_that_transformers_joins(tmp_path):
    """One expert changes: the joined parameter has it, and other parameters are not touched."""
    recipe = save_family(FAMILIES["Qwen3-MoE"], tmp_path)
    rules = [{"match": "*layers.1.mlp.experts.2.up_proj*", "value": 1}, 0]
    only = Recipe(recipe.new_base, [Delta(recipe.deltas[0].post, recipe.deltas[0].base, rules)])
    model = load(only)
    versions = {name: value._version for name, value in model.named_parameters()}
    set_scale(model, 2)
    touched = {n for n, v in model.named_parameters() if v._version != versions[n]}
    assert touched == {"model.layers.1.mlp.experts.gate_up_proj"}
    assert_same(model, written(only.times(2), tmp_path / "out")[0])


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float32, torch.float16])
def test_dtype_is_that_of_the_model(recipe, tmp_path, dtype):
    """The mix is rounded to the recipe's dtype and then converted, as when a folder is loaded."""
    model = load(recipe, dtype=dtype)
    assert_same(model, written(recipe, tmp_path / "out", dtype=dtype)[0])
    set_scale(model, 0.5)
    assert_same(model, written(recipe.times(0.5), tmp_path / "out", dtype=dtype)[0])


def test_options_reach_transformers(recipe):
    """Device maps and the implementation of attention are those of from_pretrained."""
    pytest.importorskip("accelerate")
    model = load(recipe, device_map="auto", attn_implementation="eager", workers=1, memory="128MB")
    assert model.config._attn_implementation == "eager"
    set_scale(model, 0.5)
    assert_same(model, load(recipe.times(0.5)))


@pytest.mark.parametrize("kind", ["lineage", "Qwen3-MoE", "DeepSeek-V3", "GPT-2"])
def test_mixed_on_a_device(kind, tmp_path, monkeypatch):
    """With the CPU as the device: the same bits in several chunks, at each scale."""
    made, chunks = [], devices.mixed
    monkeypatch.setattr(devices, "CHUNK", 1000)
    monkeypatch.setattr(devices, "mixed", lambda *given: made.append(1) or chunks(*given))
    is_lineage = kind == "lineage"
    recipe = tour.recipe("several", 1.0) if is_lineage else save_family(FAMILIES[kind], tmp_path)
    model = load(recipe, device_map="cpu", on_device=True)
    assert_same(model, load(recipe))
    set_scale(model, 0.3)
    assert_same(model, load(recipe.times(0.3)))
    assert len(made) > 100


def test_on_device_wants_one_device(recipe):
    """A map to several devices, or none, does not say where to mix."""
    for places in (None, "auto", {"a": "cpu", "b": "meta"}):
        with pytest.raises(UsageError) as caught:
            load(recipe, device_map=places, on_device=True)
        assert caught.value.code == "no-device"


def test_what_is_offloaded_cannot_be_changed(recipe, tmp_path):
    """Weights on the disk: loading works, another scale is refused."""
    pytest.importorskip("accelerate")
    places = {"model.embed_tokens": "cpu", "lm_head": "cpu", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "model.layers": "disk"}
    model = load(recipe, device_map=places, offload_folder=tmp_path)
    prompt = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(model(prompt).logits, load(recipe)(prompt).logits)
    with pytest.raises(UsageError) as caught:
        set_scale(model, 0.5)
    assert caught.value.code == "weights-offloaded"


def test_fp8_in_and_out(tmp_path):
    """FP8 checkpoints to an FP8 mix: transformers makes BF16 of it without a GPU, at each scale."""
    pytest.importorskip("accelerate")
    recipe = save_family(Family(LLAMA.auto, LLAMA.config, BLOCKS, chat=None), tmp_path)
    for role in ("new", "post", "base"):
        quantize(tmp_path / role, "block")
    recipe = Recipe(recipe.new_base, recipe.deltas, dtype="fp8-block")
    model = load(recipe)
    auto = transformers.AutoModelForCausalLM
    for scale in (1, 0.5):
        set_scale(model, scale)
        out = mix(recipe.times(scale), tmp_path / str(scale)).folder
        assert_same(model, auto.from_pretrained(out))


def test_an_adapter_is_what_peft_merges(tmp_path):
    """Of a LoRA adapter, the mix onto its own base is PEFT's merge, up to PEFT's rounding."""
    peft = pytest.importorskip("peft")
    config = transformers.LlamaConfig(**DECODER, tie_word_embeddings=True)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    adapted = peft.get_peft_model(base, lora)
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    model = load(Recipe(tmp_path / "base", [Delta(tmp_path / "adapter")]))
    expected = everything(merged)
    for name, value in everything(model).items():
        assert torch.allclose(value, expected[name], rtol=1e-6, atol=1e-7), name


def test_what_is_saved_is_the_mix(tmp_path):
    """save_pretrained writes the experts apart again, and loading that gives the same model."""
    recipe = save_family(FAMILIES["Qwen3-MoE"], tmp_path)
    model = load(recipe)
    set_scale(model, 0.5)
    model.save_pretrained(tmp_path / "saved")
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_same(saved, written(recipe.times(0.5), tmp_path / "out")[0])


def test_memory_is_freed_with_the_model(recipe):
    """Nothing that load keeps for set_scale keeps the model alive."""
    gc.collect()
    before = len(live._origins)
    model = load(recipe)
    assert len(live._origins) == before + 1
    del model
    gc.collect()
    assert len(live._origins) == before


def test_compiled_models_and_wrapped_ones(recipe):
    """torch.compile's wrapper stands for its model; adapters of PEFT replace modules: refused."""
    peft = pytest.importorskip("peft")
    model = load(recipe)
    set_scale(torch.compile(model), 0.5)
    assert_same(model, load(recipe.times(0.5)))
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UsageError) as caught:
        set_scale(model, 1)
    assert caught.value.code == "model-rebuilt"


def test_models_of_others_are_refused(recipe):
    """set_scale knows only models that were loaded here."""
    other = transformers.AutoModelForCausalLM.from_pretrained(recipe.new_base)
    with pytest.raises(UsageError) as caught:
        set_scale(other, 1)
    assert caught.value.code == "not-loaded"


def test_a_failed_change_is_made_good_by_the_next(recipe, tmp_path, monkeypatch):
    """Reading fails halfway: the next call mixes everything, though the scale changes little."""
    model = load(recipe)
    read, count = live.Weights.mixed, 0

    def failing(self, name):
        nonlocal count
        count += 1
        if count == 5:
            raise OSError("the disk is gone")
        return read(self, name)

    monkeypatch.setattr(live.Weights, "mixed", failing)
    with pytest.raises(OSError, match="gone"):
        set_scale(model, 0.5)
    monkeypatch.setattr(live.Weights, "mixed", read)
    set_scale(model, 1)
    assert_same(model, load(recipe))


def test_sources_that_change_are_noticed(recipe, tmp_path):
    """Post is another file since the model was loaded: another scale is refused."""
    post = shutil.copytree(recipe.deltas[0].post, tmp_path / "post")
    moved = Recipe(recipe.new_base, [Delta(post, recipe.deltas[0].base)])
    model = load(plan(moved))
    path = post / "model.safetensors"
    path.write_bytes(path.read_bytes())
    with pytest.raises((MisfitError, StorageError)) as caught:
        set_scale(model, 0.5)
    assert caught.value.code == "source-changed"


def configured(folder, **changes):
    """Change config.json; None removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"architectures": None}, "unknown-architecture"),
        ({"architectures": ["NobodyKnowsThis"]}, "unknown-architecture"),
        ({"model_type": "nobody-knows-this"}, "unknown-architecture"),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}},
            "remote-code",
        ),
        (
            {"architectures": ["Own"], "auto_map": {"AutoModelForCausalLM": "own.Own"}},
            "remote-code",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "weights-missing"),
    ],
)
def test_what_cannot_be_loaded_is_refused(recipe, tmp_path, changes, code):
    """No class, an unknown one, code of strangers, or a class with other weights."""
    new = shutil.copytree(recipe.new_base, tmp_path / "new")
    (new / "own.py").write_text("raise SystemExit('code of a stranger was run')")
    configured(new, **changes)
    with overheard(), pytest.raises(MisfitError) as caught:
        load(Recipe(new, recipe.deltas, allow=["architecture-differs"]))
    assert caught.value.code == code


def test_code_of_the_model_runs_only_when_trusted(recipe, tmp_path, monkeypatch):
    """With trust_remote_code the folder's own class is loaded."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "m"))
    new = shutil.copytree(recipe.new_base, tmp_path / "new")
    configured(new, architectures=["Own"], auto_map={"AutoModelForCausalLM": "own.Own"})
    (new / "own.py").write_text(
        "from transformers import LlamaForCausalLM\nclass Own(LlamaForCausalLM):\n    pass\n"
    )
    model = load(Recipe(new, recipe.deltas), trust_remote_code=True)
    assert type(model).__name__ == "Own"
    assert_same(model, load(recipe))


def test_a_mix_without_a_tokenizer_says_so(recipe, tmp_path):
    """A lineage of weights and configurations only has a model, and no tokenizer."""
    folders = []
    for address in (recipe.new_base, recipe.deltas[0].post, recipe.deltas[0].base):
        place = tmp_path / str(len(folders))
        place.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(f"{address}/{name}", place)
        folders.append(place)
    bare = Recipe(folders[0], [Delta(*folders[1:])])
    load(bare)
    with overheard(), pytest.raises(MisfitError) as caught:
        load_tokenizer(bare)
    assert caught.value.code == "no-tokenizer"


def test_weights_without_a_configuration_are_refused(recipe, tmp_path):
    """A weight file as new base names no class."""
    new = tmp_path / "new.safetensors"
    shutil.copy(f"{recipe.new_base}/model.safetensors", new)
    with pytest.raises(MisfitError) as caught:
        load(Recipe(new, recipe.deltas, allow=["architecture-differs"]))
    assert caught.value.code == "no-configuration"


def test_options_that_the_recipe_decides_are_refused(recipe):
    """A state dict or config of the caller would not be the mix."""
    with pytest.raises(UsageError) as caught:
        load(recipe, state_dict={})
    assert caught.value.code == "option-of-recipe"


def test_folders_of_several_models_are_refused(tmp_path):
    """A pipeline is not one model."""
    new, post, base = (
        pipeline(tmp_path / role, seed) for seed, role in enumerate(("new", "post", "base"))
    )
    with pytest.raises(MisfitError) as caught:
        load(Recipe(new, [Delta(post, base)]))
    assert caught.value.code == "load-of-components"
