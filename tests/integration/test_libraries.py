"""Folders of several models that sentence-transformers and diffusers wrote, mixed and loaded."""

import copy

import numpy as np
import pytest

from paramdelta import Delta, Recipe, mix
from paramdelta.checks import check
from tests.assembled import KINDS

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.hf, pytest.mark.slow]


def nudged(model, seed):
    """A relative of a model; seed 0 gives the model itself."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters() if seed else ():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def recipe_of(tmp_path):
    """A recipe over the three folders."""
    new, post, base = (str(tmp_path / name) for name in ("new", "post", "base"))
    return Recipe(new, (Delta(post, base),))


def difference(loaded, roles):
    """The largest difference of the output's parameters from the formula's, by module."""
    found = [{n: p.detach() for n, p in roles[k].named_parameters()} for k in KINDS]
    base, post, new = found
    return max(
        float((p.detach() - (new[n] + post[n] - base[n])).abs().max())
        for n, p in loaded.named_parameters()
    )


@pytest.fixture
def words(tmp_path):
    """A tokenizer of letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
    made = Tokenizer(models.WordLevel({t: n for n, t in enumerate(tokens)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )


def test_sentence_transformers(tmp_path, words):
    """An encoder, a pooling and a dense layer: embeddings are those of the summed weights."""
    sentences = pytest.importorskip("sentence_transformers")
    from sentence_transformers import models
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    encoder = BertModel(BertConfig(vocab_size=28, num_attention_heads=2, **sizes))
    dense = models.Dense(16, 8)
    loaded = {}
    for seed, name in enumerate(KINDS):
        nudged(encoder, seed).save_pretrained(tmp_path / "plain" / name)
        words.save_pretrained(tmp_path / "plain" / name)
        chain = [
            models.Transformer(str(tmp_path / "plain" / name)),
            models.Pooling(16, pooling_mode="mean"),
            nudged(dense, seed + 10 if seed else 0),
        ]
        loaded[name] = sentences.SentenceTransformer(modules=chain, device="cpu")
        loaded[name].save(str(tmp_path / name))
    out = mix(recipe_of(tmp_path), tmp_path / "out").folder
    found = sentences.SentenceTransformer(str(out), device="cpu")
    assert difference(found, loaded) < 1e-6
    first = found[0].auto_model
    ids = words(["abc"], return_tensors="pt")
    with torch.no_grad():
        hidden = first.eval()(**ids).last_hidden_state[0].numpy().mean(0)
    weight, bias = (p.detach().numpy() for p in found[2].linear.parameters())
    np.testing.assert_allclose(found.encode(["abc"])[0], np.tanh(weight @ hidden + bias), atol=1e-5)
    report = check(out, load=True)
    assert report.findings == ()
    assert "loading" in report.checked


def test_diffusers(tmp_path, words):
    """A pipeline of a UNet and a VAE: loaded, all parameters are the formula's."""
    diffusers = pytest.importorskip("diffusers")

    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    unet = diffusers.UNet2DModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **blocks,
    )
    roles = {}
    for seed, name in enumerate(KINDS):
        roles[name] = nudged(unet, seed)
        pipeline = diffusers.DDPMPipeline(roles[name], diffusers.DDPMScheduler())
        pipeline.save_pretrained(tmp_path / name)
    roles["new"].save_pretrained(tmp_path / "new" / "unet", variant="fp16")
    out = mix(recipe_of(tmp_path), tmp_path / "out").folder
    loaded = diffusers.DDPMPipeline.from_pretrained(out)
    assert difference(loaded.unet, roles) < 1e-6
    assert {path.name for path in (out / "unet").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    alone = Recipe(*_alone(recipe_of(tmp_path), "unet"))
    again = diffusers.UNet2DModel.from_pretrained(mix(alone, tmp_path / "alone").folder)
    assert difference(again, roles) < 1e-6
    report = check(out, load=True)
    assert report.findings == ()
    assert "loading" in report.checked
    assert check(tmp_path / "alone").findings == ()


def _alone(recipe, folder):
    """The arguments of a recipe for one component."""
    (delta,) = recipe.deltas
    return f"{recipe.new_base}/{folder}", (
        Delta(f"{delta.post}/{folder}", f"{delta.base}/{folder}"),
    )
