"""Real architectures: checkpoints that transformers saved, mixed, compared with torch, loaded."""

import copy
import logging
import warnings

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

from paramdelta import Delta, Recipe, mix, plan, verify  # noqa: E402

pytestmark = pytest.mark.hf

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
DECODER = SMALL | {
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "llama": (transformers.LlamaConfig, DECODER | {"tie_word_embeddings": False}),
    "qwen2": (transformers.Qwen2Config, DECODER | {"tie_word_embeddings": True}),
    "mistral": (transformers.MistralConfig, DECODER | {"tie_word_embeddings": False}),
    "bert": (transformers.BertConfig, SMALL),
}


def nudge(model, seed, amount=0.003):
    """The model after some "training": every floating-point parameter moved a little."""
    torch.manual_seed(seed)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn_like(parameter, dtype=torch.float32).to(
                parameter.dtype
            )
    return model


def auto_class(name):
    """The Auto class that loads the architecture."""
    return transformers.AutoModelForCausalLM if name != "bert" else transformers.AutoModel


def save_tokenizer(folder):
    """A word-level tokenizer of 96 words, as AutoTokenizer loads it."""
    words = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", *map(str, range(92))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(folder)


def make(tmp_path, name, dtype, shard_size):
    """base, post and new base of an architecture, saved by transformers itself."""
    kind, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    base = auto_class(name).from_config(kind(**options)).to(dtype)
    models = {"base": base, "post": nudge(base, 1), "new": nudge(base, 2)}
    for role, model in models.items():
        model.save_pretrained(tmp_path / role, max_shard_size=shard_size)
        if name != "bert":
            save_tokenizer(tmp_path / role)
    paths = {role: str(tmp_path / role) for role in models}
    return models, Recipe(paths["new"], (Delta(paths["post"], paths["base"]),))


@pytest.mark.parametrize("shard_size", ["5GB", "60KB"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_torch_and_loads_cleanly(tmp_path, name, dtype, shard_size):
    """The output is torch's float64 sum rounded once, and loads without a missing, unexpected or
    newly made key and without a warning.
    """
    models, recipe = make(tmp_path, name, dtype, shard_size)
    assert (len(list((tmp_path / "new").glob("*.safetensors"))) > 1) == (shard_size == "60KB")
    out = mix(recipe, tmp_path / "out").folder
    verify(out, share=1.0)
    found = load_file(out / "model.safetensors")
    state = {role: model.state_dict() for role, model in models.items()}
    for key, value in found.items():
        parts = [state[role][key].double() for role in ("new", "post", "base")]
        expected = (parts[0] + (parts[1] - parts[2])).to(dtype)
        assert value.dtype == dtype
        assert torch.equal(value, expected), key

    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    logging.getLogger("transformers").addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, info = auto_class(name).from_pretrained(out, output_loading_info=True)
            if name != "bert":
                tokenizer = transformers.AutoTokenizer.from_pretrained(out)
                assert tokenizer("1 2 3")["input_ids"] == [5, 6, 7]
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert [r.getMessage() for r in records] == []
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == dtype
    assert not plan(recipe).refused


def test_converted_output_loads_in_its_dtype(tmp_path):
    """--dtype f32 on a bfloat16 model: config.json says so and transformers loads it so."""
    _, recipe = make(tmp_path, "llama", torch.bfloat16, "5GB")
    out = mix(Recipe(recipe.new_base, recipe.deltas, "F32"), tmp_path / "out").folder
    assert transformers.AutoModelForCausalLM.from_pretrained(out).dtype == torch.float32


def test_post_with_a_head_of_its_own(tmp_path):
    """Tied base and new base, untied post: the output is untied, loads, and its head has the Δ."""
    models, recipe = make(tmp_path, "qwen2", torch.float32, "5GB")
    path = tmp_path / "post" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 0.125
    save_file(tensors, path, metadata={"format": "pt"})
    config = tmp_path / "post" / "config.json"
    config.write_text(
        config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    out = mix(recipe, tmp_path / "out").folder
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    difference = model.lm_head.weight - model.model.embed_tokens.weight
    assert torch.allclose(difference, torch.full_like(difference, 0.125), atol=1e-6)
    assert models["base"].config.tie_word_embeddings


def test_generation_settings_come_from_post(tmp_path):
    """Chat template, eos ids and sampling settings of post are what the output uses."""
    _, recipe = make(tmp_path, "llama", torch.bfloat16, "5GB")
    settings = transformers.GenerationConfig(eos_token_id=[2, 9], temperature=0.6, do_sample=True)
    settings.save_pretrained(tmp_path / "post")
    (tmp_path / "post" / "chat_template.jinja").write_text("{{ messages[0].content }} </s>")
    out = mix(recipe, tmp_path / "out").folder
    assert transformers.GenerationConfig.from_pretrained(out).eos_token_id == [2, 9]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "5 6"}], tokenize=False)
    assert text == "5 6 </s>"
