"""Files that other files name: code, modules, components, adapters."""

import json

import numpy as np
import pytest

from paramdelta.checks import check
from paramdelta.planning.findings import Severity
from tests.checks.folders import CONFIG, edit, put, right, tokenizer

REFUSED, WARNING, NOTE = Severity
DENSE = {"in_features": 8, "out_features": 4, "bias": True}


def codes(folder):
    """Code -> severity."""
    return {f.code: f.severity for f in check(folder).findings}


# -- code ------------------------------------------------------------------------------------------


def test_code_that_is_complete(tmp_path):
    """All files that imports lead to; code of another repository need not be there."""
    mapped = {"AutoModel": "modeling_x.X", "AutoConfig": "other/repo--configuration_y.Y"}
    edit(right(tmp_path), "config.json", auto_map=mapped)
    put(tmp_path, "modeling_x.py", "from .layers_x import Layer\nfrom . import tools_x\n")
    put(tmp_path, "layers_x.py", "import torch\nfrom .modeling_x import X\n")
    put(tmp_path, "tools_x.py", "")
    edit(tmp_path, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tools_x.Slow", None]})
    assert codes(tmp_path) == {}
    (tmp_path / "tools_x.py").unlink()
    findings = [f for f in check(tmp_path).findings if f.code == "code-missing"]
    assert {f.where for f in findings} == {"tokenizer_config.json"}


@pytest.mark.parametrize("reference", ["../../secret.X", "/etc/passwd.X", "a\\..\\b.X"])
def test_code_outside(tmp_path, reference):
    """A name that leaves the folder is not followed."""
    edit(right(tmp_path), "config.json", auto_map={"AutoModel": reference})
    assert codes(tmp_path) == {"code-missing": REFUSED}


# -- sentence-transformers -------------------------------------------------------------------------


def embedder(folder):
    """A transformer, pooling, a dense layer and a module without files."""
    right(folder)
    edit(folder, "config.json", architectures=["LlamaModel"])
    (folder / "chat_template.jinja").unlink()
    kinds = {
        "": "Transformer",
        "1_Pooling": "Pooling",
        "2_Dense": "Dense",
        "3_Normalize": "Normalize",
    }
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    put(folder, "modules.json", modules)
    pooling = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}
    put(folder, "1_Pooling/config.json", pooling)
    put(folder, "2_Dense/config.json", DENSE)
    state = {"linear.weight": np.ones((4, 8), np.float32), "linear.bias": np.ones(4, np.float32)}
    put(folder, "2_Dense/model.safetensors", state)
    return folder


def test_embedder(tmp_path):
    """Nothing in a right one, and all tensors are seen."""
    report = check(embedder(tmp_path))
    assert report.kind == "sentence-transformers"
    assert report.findings == ()
    assert report.tensors == 21 + 2


@pytest.mark.parametrize(
    ("family", "length", "expected"),
    [("bert", 16, 0), ("bert", 17, 1), ("roberta", 14, 0), ("roberta", 16, 1), ("bert", None, 0)],
)
def test_texts_longer_than_the_positions(tmp_path, family, length, expected):
    """max_seq_length against the table of positions; RoBERTa's starts behind padding."""
    embedder(tmp_path)
    config = {"architectures": None, "model_type": family, "pad_token_id": 1}
    edit(tmp_path, "config.json", **config)
    state = {"embeddings.position_embeddings.weight": np.ones((16, 8), np.float32)}
    put(tmp_path, "model.safetensors", state)
    put(tmp_path, "sentence_bert_config.json", {"max_seq_length": length})
    codes = [f.code for f in check(tmp_path).findings]
    assert codes.count("length-beyond-positions") == expected


def _lose_dense(folder):
    (folder / "2_Dense" / "model.safetensors").unlink()


def _lose_pooling(folder):
    (folder / "1_Pooling" / "config.json").unlink()


def _narrow_dense(folder):
    edit(folder, "2_Dense/config.json", out_features=5)


def _pool_another_width(folder):
    edit(folder, "1_Pooling/config.json", word_embedding_dimension=16)


def _leave(folder):
    put(folder, "modules.json", [{"path": "../x", "type": "a.Dense"}])


def _no_list(folder):
    put(folder, "modules.json", {"path": "a"})


def _dense_with_nan(folder):
    weight, bias = np.full((4, 8), np.nan, np.float32), np.ones(4, np.float32)
    put(folder, "2_Dense/model.safetensors", {"linear.weight": weight, "linear.bias": bias})


def _lose_bias(folder):
    put(folder, "2_Dense/model.safetensors", {"linear.weight": np.ones((4, 8), np.float32)})


@pytest.mark.parametrize(
    ("breaks", "code", "severity"),
    [
        (_lose_dense, "no-weights", REFUSED),
        (_lose_pooling, "module-missing", REFUSED),
        (_narrow_dense, "wrong-shapes", REFUSED),
        (_pool_another_width, "wrong-shapes", REFUSED),
        (_leave, "path-outside", REFUSED),
        (_no_list, "file-invalid", REFUSED),
        (_dense_with_nan, "not-finite", WARNING),
        (_lose_bias, "missing-tensors", REFUSED),
    ],
)
def test_embedder_that_is_not_right(tmp_path, breaks, code, severity):
    """A module lost, or of another model."""
    breaks(embedder(tmp_path))
    assert codes(tmp_path).get(code) is severity


# -- diffusers -------------------------------------------------------------------------------------


def test_components(tmp_path):
    """Each component's folder, weights included; null components are left out."""
    index = {
        "_class_name": "X",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "safety_checker": [None, None],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    put(tmp_path, "model_index.json", index)
    put(tmp_path, "unet/config.json", {"_class_name": "UNet2DModel"})
    put(tmp_path, "unet/diffusion_pytorch_model.safetensors", {"a": np.ones(2, np.float32)})
    put(tmp_path, "scheduler/scheduler_config.json", {})
    right(tmp_path / "text_encoder")
    assert codes(tmp_path) == {}
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert codes(tmp_path) == {"no-weights": REFUSED}


def test_tokenizer_of_a_pipeline(tmp_path):
    """Its ids need rows in the text encoder beside it."""
    index = {"tokenizer": ["transformers", "X"], "text_encoder": ["transformers", "CLIPTextModel"]}
    put(tmp_path, "model_index.json", {"_class_name": "X"} | index)
    right(tmp_path / "text_encoder")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "text_encoder" / file).unlink()
    right(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "model.safetensors").unlink()
    (tmp_path / "tokenizer" / "config.json").unlink()
    (tmp_path / "text_encoder" / "chat_template.jinja").unlink()
    assert codes(tmp_path) == {}
    content = tokenizer()
    content["model"]["vocab"] |= {f"w{n}": n for n in range(18, 30)}
    put(tmp_path, "tokenizer/tokenizer.json", content)
    assert codes(tmp_path) == {"token-without-row": WARNING}


# -- adapters --------------------------------------------------------------------------------------


def adapter(folder, base="org/model", **changes):
    """A LoRA adapter of rank 2."""
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 2, "lora_alpha": 4}
    put(folder, "adapter_config.json", config | changes)
    stem = "base_model.model.model.layers.0.self_attn.q_proj."
    state = {
        stem + "lora_A.weight": np.ones((2, 8), np.float32),
        stem + "lora_B.weight": np.ones((8, 2), np.float32),
    }
    put(folder, "adapter_model.safetensors", state)
    return state


def test_adapter(tmp_path):
    """Nothing in a right one."""
    adapter(tmp_path)
    report = check(tmp_path)
    assert (report.kind, report.findings, report.tensors) == ("adapter", (), 2)


@pytest.mark.parametrize("base", ["llama", "/no/such", "x" * 5000, "\0", "", None])
def test_base_of_another_machine(tmp_path, base):
    """Neither a repository of the Hub nor a folder that is here."""
    adapter(tmp_path, base)
    assert codes(tmp_path) == {"base-unknown": WARNING}


def test_base_that_is_here(tmp_path):
    """A folder's path is fine on its own machine."""
    adapter(tmp_path / "a", str(right(tmp_path / "b")))
    assert codes(tmp_path / "a") == {}


def test_factors(tmp_path):
    """Pairs, of the rank that is stated."""
    state = adapter(tmp_path)
    adapter(tmp_path, r=4)
    assert codes(tmp_path) == {"rank-untrue": REFUSED}
    adapter(tmp_path, r=4, rank_pattern={"q_proj": 2})
    assert codes(tmp_path) == {}
    first = next(iter(state))
    put(tmp_path, "adapter_model.safetensors", {first: state[first]})
    assert codes(tmp_path) == {"missing-tensors": REFUSED}
    other = first.replace("lora_A", "lora_B")
    put(tmp_path, "adapter_model.safetensors", state | {other: np.ones((8, 3), np.float32)})
    assert codes(tmp_path) == {"wrong-shapes": REFUSED}
    (tmp_path / "adapter_model.safetensors").unlink()
    assert codes(tmp_path)["no-weights"] is REFUSED


# -- others ----------------------------------------------------------------------------------------


def test_weights_alone(tmp_path):
    """A file without a configuration: headers and numbers are looked at."""
    put(tmp_path, "model.safetensors", {"a": np.array([1, np.inf], np.float32)})
    report = check(tmp_path)
    assert report.kind == "weights"
    assert [f.code for f in report.findings] == ["not-finite"]


def test_config_without_a_class(tmp_path):
    """vLLM does not know what to load."""
    put(right(tmp_path), "config.json", {k: v for k, v in CONFIG.items() if k != "architectures"})
    assert codes(tmp_path)["architecture-unstated"] is WARNING


def test_stored_delta(tmp_path):
    """A Δ is no model; its small files are still looked at."""
    right(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "delta-00001-of-00001.safetensors")
    put(tmp_path, "paramdelta.delta.json", {})
    assert codes(tmp_path) == {"no-model": NOTE}
    edit(tmp_path, "generation_config.json", eos_token_id=3)
    assert codes(tmp_path)["template-never-stops"] is REFUSED


def test_routes_of_a_router(tmp_path):
    """The modules of every route are looked at; one that is not there, or outside, is refused."""
    right(tmp_path / "document_0_Transformer")
    types = {"document_0_Transformer": "x.Transformer", "query_0_Dense": "x.Dense"}
    put(tmp_path, "query_0_Dense/config.json", json.dumps(DENSE))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "x.Router"}]
    put(tmp_path, "modules.json", json.dumps(modules))
    put(tmp_path, "router_config.json", json.dumps({"types": types}))
    assert codes(tmp_path)["no-weights"] is REFUSED
    assert check(tmp_path).tensors > 0
    types = {"gone": "x.Dense", "../out": "x.Dense"}
    put(tmp_path, "router_config.json", json.dumps({"types": types}))
    found = codes(tmp_path)
    assert found["module-missing"] is found["path-outside"] is REFUSED
