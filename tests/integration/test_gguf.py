"""Mixes with GGUF posts and bases, against gguf's own dequantization and transformers' loader."""

import json
from dataclasses import replace

import numpy as np
import pytest

from paramdelta import Delta, Recipe, api, plan
from paramdelta.formats.checkpoint import open_checkpoint
from paramdelta.jobs.verify.rounding import rounded
from paramdelta.storage.files import Files
from paramdelta.storage.location import locate
from paramdelta.storage.reader import Reader
from tests import ggufs, opening

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from safetensors.torch import load_file  # noqa: E402

pytestmark = pytest.mark.hf

VOCABULARY = 32
MODELS = {
    "llama": ("Llama", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma2": ("Gemma2", {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma3": ("Gemma3Text", {"num_key_value_heads": 1, "head_dim": 8}),
    "phi3": ("Phi3", {"pad_token_id": 0}),
}
# Every type, in the order of the tensors of a layer and the embedding.
KINDS = [ggufs.Q4_K, ggufs.Q6_K, ggufs.Q5_0, ggufs.Q8_0, ggufs.Q2_K, ggufs.Q3_K, ggufs.Q5_K]
KINDS += [ggufs.Q4_0, ggufs.Q4_1, ggufs.Q5_1, ggufs.F16, ggufs.BF16, ggufs.F32]


def made(architecture, seed=0, **more):
    """A tiny model of random weights."""
    name, own = MODELS[architecture]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(
        **{**sizes, "num_hidden_layers": 2, "vocab_size": VOCABULARY, **own, **more}
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # norms that differ from one, so that shifts show
        parameter.data = torch.randn(parameter.shape) * 0.05 + (parameter.ndim == 1) * 0.1
    return model


def keys_of(architecture, config):
    """The metadata that the converter writes."""
    return {
        **ggufs.metadata(
            architecture,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            block_count=config.num_hidden_layers,
            embedding_length=config.hidden_size,
            feed_forward_length=config.intermediate_size,
            context_length=64,
        ),
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": 10000.0,
        f"{architecture}.attention.key_length": config.head_dim
        if getattr(config, "head_dim", None)
        else config.hidden_size // config.num_attention_heads,
        **ggufs.vocabulary(VOCABULARY),
    }


def converted(architecture, model):
    """The tensors of a model as llama.cpp's converter stores them, float32, by its own names."""
    names = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(names[architecture], model.config.num_hidden_layers)
    tied = model.config.get_text_config().tie_word_embeddings
    found = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        values = weight.float().numpy()
        if architecture == "llama" and "q_proj" in name:
            values = ggufs.rotated(values, model.config.num_attention_heads)
        if architecture == "llama" and "k_proj" in name:
            values = ggufs.rotated(values, model.config.num_key_value_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + np.float32(1)
        found[table.get_name(name, try_suffixes=(".weight", ".bias"))] = values
    return found


def numbers(path):
    """Every tensor of a checkpoint by name, in float32."""
    with Reader() as reader:
        found = open_checkpoint(Files(locate(str(path)), reader), "post")
    return {
        name: view.float64(0, view.elements, opening.fetch).astype(np.float32).reshape(view.shape)
        for name, view in found.tensors.items()
    }


@pytest.mark.parametrize("architecture", MODELS)
def test_a_converted_model_is_read_back(tmp_path, architecture):
    """Names, rotations and shifts are undone: the tensors are the model's own."""
    model = made(architecture)
    tensors = {name: ggufs.plain(v) for name, v in converted(architecture, model).items()}
    path = ggufs.save(tmp_path / "m.gguf", keys_of(architecture, model.config), tensors)
    found = numbers(path)
    wanted = {n: w.float().numpy() for n, w in model.state_dict().items()}
    if model.config.get_text_config().tie_word_embeddings:
        del wanted["lm_head.weight"]
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        exact = not (architecture.startswith("gemma") and name.endswith("norm.weight"))
        assert np.allclose(found[name], values, rtol=0, atol=0 if exact else 1e-7), name


def folder(path, model, seed):
    """A model saved in bfloat16 with a tokenizer of the same tokens as `ggufs.vocabulary`."""
    model = model.to(torch.bfloat16)
    model.config.dtype = "bfloat16"
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape).to(torch.bfloat16) * 0.01
    model.save_pretrained(path)
    tokens = ggufs.vocabulary(VOCABULARY)["tokenizer.ggml.tokens"]
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": tokens[i], "special": True, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False}
            for i in (VOCABULARY - 2, VOCABULARY - 1)
        ],
        "model": {
            "type": "WordLevel",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "unk_token": "t0",
        },
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(content))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return path


@pytest.fixture(scope="module")
def lineage(tmp_path_factory):
    """Llama: base and new base, and a GGUF post that has every type of tensor."""
    place = tmp_path_factory.mktemp("gguf")
    sizes = {"hidden_size": 256, "intermediate_size": 256, "tie_word_embeddings": False}
    model = made("llama", **sizes)
    tensors, kinds = {}, iter([*KINDS, *KINDS])
    for name, values in converted("llama", model).items():
        if values.ndim == 1:
            tensors[name] = ggufs.plain(values)
            continue
        kind = next(kinds)
        if kind == ggufs.F32:
            tensors[name] = ggufs.plain(values)
        elif kind == ggufs.F16:
            tensors[name] = ggufs.Tensor(kind, values.shape, values.astype("<f2").tobytes())
        elif kind == ggufs.BF16:
            bits = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
            tensors[name] = ggufs.Tensor(kind, values.shape, bits.tobytes())
        else:
            tensors[name] = ggufs.blocks(kind, values.shape, len(tensors))
    assert {tensor.kind for tensor in tensors.values()} == set(KINDS)
    post = ggufs.save(place / "post" / "m.gguf", keys_of("llama", model.config), tensors)
    base = folder(place / "base", made("llama", **sizes), 1)
    new = folder(place / "new", made("llama", **sizes), 2)
    return post, base, new


def summed(new, post, base):
    """The formula, rounded once to bfloat16; torch rounds float64 twice."""
    exact = new.double() + (post.double() - base.double())
    return torch.from_numpy(rounded(exact.numpy(), "BF16")).to(torch.bfloat16)


def recipe(lineage, **choices):
    """The plain mix."""
    post, base, new = lineage
    return Recipe(new, (Delta(post, base),), **choices)


def test_the_mix_is_the_formula_on_what_transformers_loads(tmp_path, lineage):
    """Weights to the bit and logits: new base + (post as transformers loads it − base)."""
    post, base, new = lineage
    out = tmp_path / "out"
    api.mix(recipe(lineage), out)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        post.parent, gguf_file=post.name, dtype=torch.float32
    )
    theirs = loaded.state_dict()
    ours, gone, found = (load_file(path / "model.safetensors") for path in (new, base, out))
    expected = {name: summed(ours[name], theirs[name], gone[name]) for name in found}
    for name, mixed in found.items():
        assert torch.equal(mixed, expected[name]), name
    reference = transformers.AutoModelForCausalLM.from_pretrained(new)
    reference.load_state_dict(expected)
    mixed = transformers.AutoModelForCausalLM.from_pretrained(out)
    ids = torch.arange(VOCABULARY)[None]
    with torch.no_grad():
        assert torch.equal(mixed(ids).logits, reference(ids).logits)
    api.verify(out, share=1)


def test_what_makes_it_converse_is_posts(tmp_path, lineage):
    """Template, roles and ends of GGUF's metadata, in the files of the new base."""
    out = tmp_path / "out"
    api.mix(recipe(lineage), out)
    said = json.loads((out / "tokenizer_config.json").read_text())
    assert said["eos_token"] == "<|end|>"
    assert said["chat_template"] == "{{ messages }}<|end|>"
    for name in ("config.json", "generation_config.json"):
        assert json.loads((out / name).read_text())["eos_token_id"] == VOCABULARY - 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.eos_token_id == VOCABULARY - 2
    (lock,) = (json.loads((out / "paramdelta.lock.json").read_text()),)
    (file,) = next(s for s in lock["sources"] if s["role"] == "post")["files"]
    assert file["name"] == "m.gguf"
    assert file["digest"]


def test_only_what_the_metadata_states_is_compared(lineage):
    """Keys of config.json that GGUF does not have are no difference; those that it has are."""
    codes = {found.code for found in plan(recipe(lineage)).findings}
    assert {"gguf-precision", "gguf-noise"} <= codes
    assert "config-differs" not in codes


def test_rows_correspond_by_token(tmp_path, lineage):
    """A post whose tokens have other ids: its rows are found by the tokens in the metadata."""
    post, base, new = lineage
    tokens = ggufs.vocabulary(VOCABULARY)["tokenizer.ggml.tokens"]
    model = made("llama", hidden_size=256, intermediate_size=256, tie_word_embeddings=False)
    keys = {**keys_of("llama", model.config), "tokenizer.ggml.tokens": tokens[1:-2] + tokens[:1]
            + tokens[-2:]}  # fmt: skip
    tensors = {name: ggufs.plain(v) for name, v in converted("llama", model).items()}
    moved = ggufs.save(tmp_path / "m.gguf", keys, tensors)
    made_ = plan(Recipe(new, (Delta(moved, base),)))
    found = next(t for t in made_.tensors if t.name == "model.embed_tokens.weight")
    (pair,) = found.pairs
    rows = pair.post.array(0, pair.post.elements, opening.fetch).reshape(VOCABULARY, -1)
    own = model.state_dict()["model.embed_tokens.weight"].numpy()
    order = [tokens.index(t) for t in keys["tokenizer.ggml.tokens"]]
    assert np.array_equal(rows[order], own)
    assert "tokens-moved" in {f.code for f in made_.findings}
    assert post != moved


def test_gguf_as_base(tmp_path, lineage):
    """The old base exists only as GGUF: post is a folder."""
    post, base, new = lineage
    out = tmp_path / "out"
    api.mix(Recipe(new, (Delta(base, post),)), out)
    theirs = numbers(post)
    ours, other, mixed = (load_file(p / "model.safetensors") for p in (new, base, out))
    for name, weight in mixed.items():
        gone = torch.from_numpy(theirs[name])
        assert torch.equal(weight, summed(ours[name], other[name], gone)), name


def test_an_extracted_delta_gives_the_same(tmp_path, lineage):
    """The Δ of a GGUF post is stored with base's files and post's template, and is verified."""
    post, base, new = lineage
    api.extract((str(post), str(base)), tmp_path / "delta")
    assert {f.name for f in (tmp_path / "delta").iterdir()} >= {"config.json", "tokenizer.json"}
    checked = api.verify(tmp_path / "delta", share=1, post=str(post), base=str(base))
    assert "recomputed from post and base" in checked.how
    direct, stored = tmp_path / "direct", tmp_path / "stored"
    api.mix(recipe(lineage), direct)
    api.mix(Recipe(new, (Delta(delta=tmp_path / "delta"),)), stored)
    for name in ("model.safetensors", "tokenizer_config.json", "config.json"):
        assert (direct / name).read_bytes() == (stored / name).read_bytes(), name


def test_a_change_of_the_file_is_noticed(tmp_path, lineage):
    """The lock holds a digest of the GGUF file."""
    post, base, _ = lineage
    copy = tmp_path / "m.gguf"
    copy.write_bytes(post.read_bytes())
    out = tmp_path / "out"
    api.mix(replace(recipe(lineage), deltas=(Delta(copy, base),)), out)
    api.verify(out)
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(bytes(data))
    with pytest.raises(Exception, match="source"):
        api.verify(out, share=1)
