"""Which tensors go into an adapter, and under which names."""

import numpy as np
import pytest

from paramdelta import extract_adapter
from paramdelta.api import plan_extract
from paramdelta.planning.linear import EMBEDDINGS, OTHERS, VECTORS, linear
from tests.checkpoints import bf16, llama, moved, save


def parts(tmp_path, base, config=None, embeddings=False, post=None):
    """What of a Δ between these tensors and moved ones goes where."""
    post = save(tmp_path / "post", post or moved(base, 1), config_json=config or {})
    folder = save(tmp_path / "base", base, config_json=config or {})
    return linear(plan_extract(str(post), str(folder)), embeddings)


def test_a_llama(tmp_path):
    """Seven matrices a layer; embedding and head; norms."""
    found = parts(tmp_path, llama())
    assert len(found.modules) == 14
    assert found.modules[0].name == found.modules[0].tensor.removesuffix(".weight")
    assert {kind: len(tensors) for kind, tensors in found.left.items()} == {
        EMBEDDINGS: 2,
        VECTORS: 5,
    }


def test_embeddings_on_demand(tmp_path):
    """The embedding's factors are turned and have names of their own; the head is a layer."""
    found = parts(tmp_path, llama(), embeddings=True)
    special = {m.name: (m.embedding, m.turned, m.facing) for m in found.modules[-16:]}
    assert special["model.embed_tokens"] == (True, True, (16, 32))
    assert special["lm_head"] == (False, False, (32, 16))
    assert EMBEDDINGS not in found.left
    assert not found.tied


def test_other_shapes_are_left(tmp_path):
    """Kernels, joined experts, tables and matrices that are no module's weight."""
    others = {
        "model.layers.0.conv.weight": (4, 3, 2),
        "model.layers.0.mlp.experts.down_proj": (2, 4, 3),
        "model.layers.0.mixer.A_log": (4, 3),
        "model.layers.0.position_bias": (4, 3),
    }
    base = llama() | {name: bf16(np.ones(shape)) for name, shape in others.items()}
    found = parts(tmp_path, base)
    assert {tensor.name for tensor in found.left[OTHERS]} == others.keys()


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "CAUSAL_LM"),
        ({"architectures": ["GPT2LMHeadModel"]}, "CAUSAL_LM"),
        ({"architectures": ["BertModel"]}, "FEATURE_EXTRACTION"),
        (
            {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
            "SEQ_2_SEQ_LM",
        ),
        ({"architectures": ["LlavaForConditionalGeneration"]}, None),
        ({"architectures": ["BertForSequenceClassification"]}, None),
        ({"architectures": "LlamaForCausalLM"}, None),
        ({"architectures": []}, None),
        ({}, None),
    ],
)
def test_the_task(tmp_path, config, task):
    """As the architecture says so; a classifier's would have PEFT look for a trained head."""
    assert (
        parts(tmp_path, {"model.layers.0.fc1.weight": bf16(np.ones((3, 2)))}, config).task == task
    )


def test_a_grown_vocabulary_has_no_factors(tmp_path):
    """Rows that base does not have cannot be added to it."""
    base = llama()
    post = moved(base, 1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        post[name] = np.concatenate([post[name], post[name][:2]])
    with_rows = save(tmp_path / "post", post)
    plan = plan_extract(
        str(with_rows),
        str(save(tmp_path / "base", base)),
        allow=("shape-differs", "post-only-tokens"),
    )
    found = linear(plan, True)
    assert all(not module.embedding for module in found.modules)
    assert "lm_head" not in {module.name for module in found.modules}


@pytest.mark.hf
def test_names_of_a_bare_gpt2(tmp_path):
    """The Hub's gpt2 has no "transformer." in its names, and the loaded model has."""
    peft = pytest.importorskip("peft")
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=40))
    for name in ("base", "post"):
        model.save_pretrained(tmp_path / name)
        path = tmp_path / name / "model.safetensors"
        tensors = load_file(path)
        bare = {n.removeprefix("transformer."): t for n, t in tensors.items()}
        save_file(bare, path, metadata={"format": "pt"})
        with torch.no_grad():
            for tensor in model.parameters():
                tensor += 0.02 * torch.randn_like(tensor)
    places = str(tmp_path / "post"), str(tmp_path / "base")
    made = extract_adapter(places, tmp_path / "a", rank=64).made
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "a").merge_and_unload().state_dict()
    post = load_file(tmp_path / "post" / "model.safetensors")
    assert len(made.kept) == 4
    for one in made.kept:
        assert one.module.startswith("transformer.h.0.")
        assert torch.allclose(merged[one.module + ".weight"], post[one.tensor], atol=1e-5)
