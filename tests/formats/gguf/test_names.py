"""Names and layouts of GGUF tensors: the inverse of llama.cpp's converter."""

from dataclasses import replace

import numpy as np
import pytest

from paramdelta.errors import CheckpointError
from paramdelta.formats.gguf.names import ARCHITECTURES, architecture_of, renamed, unrotated
from tests import ggufs
from tests.views import Store

LAYER = "model.layers.1"


def names_of(architecture):
    """For each of our names the name in the file."""
    kind = ARCHITECTURES[architecture]
    found = {f"{LAYER}.{ours}.weight": f"blk.1.{gguf}.weight" for gguf, ours in kind.names.items()}
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    return found | {f"{ours}.weight": f"{gguf}.weight" for ours, gguf in outside.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_are_those_of_the_converter(architecture):
    """Every name of ours is what gguf's own table turns into the name in the file."""
    gguf = pytest.importorskip("gguf")
    keys = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(keys[architecture], 2)
    for ours, theirs in names_of(architecture).items():
        found = table.get_name(ours, try_suffixes=(".weight",))
        assert found == theirs or (found is None and ours == "lm_head.weight")  # always tied


MODELS = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "gemma": ("Gemma", {"head_dim": 8}),
    "gemma2": ("Gemma2", {"head_dim": 8}),
    "gemma3": ("Gemma3Text", {"head_dim": 8}),
    "phi3": ("Phi3", {"pad_token_id": 0}),
}


@pytest.mark.hf
@pytest.mark.parametrize("architecture", MODELS)
def test_every_weight_of_a_model_has_a_name(architecture):
    """The names are complete: those of a model that transformers makes."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, more = MODELS[architecture]
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=32, **more,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    wanted = {n for n in model.state_dict() if ".layers.0." not in n and n.endswith("weight")}
    assert wanted == names_of(architecture).keys()


def view(name, array):
    """A stored tensor, and the fetch for it."""
    store = Store()

    def fetch(tensor, starts, into):
        store.fetch(replace(tensor, name=name), starts, into)

    return store.tensor(name, np.asarray(array, np.float32)), fetch


def test_rotated_rows_are_put_back():
    """Query and key of Llama, weight and bias, as the converter's formula reorders them."""
    weight = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    for values in (weight, weight[:, 0]):
        held, fetch = view("q", ggufs.rotated(values, 3))
        found = unrotated(held, 3, "here")
        assert found.shape == values.shape
        assert np.array_equal(found.array(0, found.elements, fetch).reshape(values.shape), values)


def test_only_query_and_key_of_the_llama_family_are_rotated():
    """Qwen's are as they are; Llama's value is."""
    values = np.arange(32).reshape(8, 4)
    for architecture, changed in (("llama", {"q", "k"}), ("qwen2", set())):
        for letter in "qkv":
            held, fetch = view(f"blk.1.attn_{letter}.weight", values)
            made = renamed([held], ARCHITECTURES[architecture], 2, 2, "here")
            found = made[f"{LAYER}.self_attn.{letter}_proj.weight"].array(0, 32, fetch)
            assert np.array_equal(found, values.reshape(-1)) == (letter not in changed)


def test_gemmas_norms_lose_the_one():
    """All norms of Gemma, and only norms; other families' are as they are."""
    for architecture, taken in (("gemma3", 1.0), ("qwen3", 0.0)):
        for norm in ("blk.1.attn_norm", "blk.1.attn_q_norm", "output_norm"):
            held, fetch = view(f"{norm}.weight", [1.5, 2])
            made = renamed([held], ARCHITECTURES[architecture], 2, 2, "here")
            ((_, found),) = made.items()
            assert found.array(0, 2, fetch).tolist() == [1.5 - taken, 2 - taken]
    held, fetch = view("token_embd.weight", [[1.5]])
    (found,) = renamed([held], ARCHITECTURES["gemma3"], 2, 2, "here").values()
    assert found.array(0, 1, fetch).tolist() == [1.5]


def test_factors_of_positions_are_left_out():
    """Llama 3.1's and Phi-3's: config.json says what they are."""
    views = [view(name, [1.0])[0] for name in ("rope_freqs.weight", "rope_factors_long.weight")]
    assert renamed(views, ARCHITECTURES["llama"], 1, 1, "here") == {}


@pytest.mark.parametrize(
    ("name", "what"),
    [("blk.0.ffn_gate_exps.weight", "experts"), ("blk.0.ssm_a", "not known"), ("x", "not known")],
)
def test_other_tensors_are_refused(name, what):
    """A tensor without a name here is not dropped."""
    with pytest.raises(CheckpointError, match=what):
        renamed([view(name, [1.0])[0]], ARCHITECTURES["qwen3"], 1, 1, "here")


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"general.architecture": "mamba"}, "mamba"),
        ({"general.architecture": "llama", "llama.expert_count": 8}, "with experts"),
        ({"general.architecture": "llama", "general.type": "adapter"}, "adapter"),
        ({}, "does not state its architecture"),
    ],
)
def test_other_architectures_are_refused(said, what):
    """What cannot be mapped is refused by name."""
    with pytest.raises(CheckpointError, match=what):
        architecture_of(said, "here")
