"""Presets against the classes of real models: what is a linear layer, says the module."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers.pytorch_utils import Conv1D

from paramdelta.planning.presets import is_of
from paramdelta.recipe.schedule import PRESETS
from tests.integration.families import FAMILIES

pytestmark = pytest.mark.hf

NAMES = ["Llama 3", "Qwen2", "Qwen3", "Qwen3-MoE", "Mixtral", "DeepSeek-V3", "Llama 4", "gpt-oss"]
NAMES += ["Gemma 3", "Phi-3", "GPT-2", "BERT", "T5", "T5 1.1", "Whisper"]


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_what_the_modules_say(name):
    """linear-only: weights of linear modules, routers and experts but not of the output head;
    skip-embeddings: all but embeddings and head; attention-only and mlp-only: modules so called.
    """
    family = FAMILIES[name]
    model = family.loader.from_config(family.config(**family.sizes))
    head = model.get_output_embeddings()
    said = {"linear": set(), "ends": set(), "attention": set(), "mlp": set(), "experts": set()}
    for path, module in model.named_modules():
        kind = type(module).__name__
        own = {f"{path}.{n}" for n, _ in module.named_parameters(recurse=False)}
        below = {f"{path}.{n}" for n, _ in module.named_parameters()}
        norms = {n for n in below if n.split(".")[-2].lower() in ("layernorm", "layer_norm")}
        relative = "relative_attention_bias" in path
        if module is head or (isinstance(module, torch.nn.Embedding) and not relative):
            said["ends"] |= own
        elif isinstance(module, torch.nn.Linear | Conv1D) or kind.endswith("Router"):
            said["linear"] |= {n for n in own if n.endswith(".weight")}
        elif kind.endswith("Experts"):
            said["linear"] |= {n for n in own if not n.endswith("bias")}
            said["experts"] |= below
        if "Attention" in kind:
            said["attention"] |= below - norms
        if kind.endswith(("MLP", "MoE", "Moe", "MoeBlock", "DenseGatedActDense", "DenseActDense")):
            said["mlp"] |= below
        if path.endswith((".fc1", ".fc2")):
            said["mlp"] |= below
        if kind.endswith(("BertIntermediate", "BertOutput")):
            said["mlp"] |= below - norms
    head_biases = {"cls.predictions.bias"}
    axes = {n: p.dim() for n, p in model.named_parameters()}
    found = {preset: {n for n, dim in axes.items() if is_of(preset, n, dim)} for preset in PRESETS}
    every = set(axes)
    routers = {n for n in every if n.endswith((".gate.weight", ".router.weight"))}
    assert found["linear-only"] == (said["linear"] | routers) & every
    assert found["skip-embeddings"] == every - said["ends"] - head_biases
    assert found["attention-only"] == said["attention"] & every
    assert found["mlp-only"] == said["mlp"] & every
    assert found["experts-only"] == said["experts"] & every
