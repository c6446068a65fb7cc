"""Rows of tokens in whole plans: which tensors follow the tokens, and what the user is told."""

import json
from dataclasses import replace

import numpy as np
import pytest

from paramdelta import Delta, Recipe, Severity, mix, plan
from paramdelta.errors import UsageError
from paramdelta.planning import rows
from tests.checkpoints import bf16, encode, llama, moved, save
from tests.opening import checkpoint, fetch
from tests.planning.test_companions import tokenizer
from tests.planning.test_sentencepiece import model

WORDS = [f"t{i}" for i in range(40)]
MOVED = [*WORDS[20:], *WORDS[:20]]  # the new base's tokens: every id is another


def lineage(folder, tensors=None, **roles):
    """A recipe; by role the further files. ``tensors``: added to the tensors of each."""
    base = llama(vocab=40) | (tensors or {})
    sets = {"base": base, "post": moved(base, 1), "new": moved(base, 2)}
    paths = {name: str(save(folder / name, sets[name], **roles.get(name, {}))) for name in sets}
    return Recipe(paths["new"], (Delta(paths["post"], paths["base"]),))


def longer(more):
    """The tensors of post with more rows of tokens."""
    tensors = moved(llama(vocab=40), 1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.concatenate([tensors[name], tensors[name][:more]])
    return tensors


def found(made):
    """Severities by code."""
    return {f.code: f.severity for f in made.findings}


def numbers(folder, name):
    """A tensor of a checkpoint as float64."""
    view = checkpoint(folder).tensors[name]
    return view.float64(0, view.elements, fetch).reshape(view.shape)


def words(tokens, **config):
    """The files of one role: a tokenizer, and a config.json if it is given."""
    return {"tokenizer_json": tokenizer(tokens)} | ({"config_json": config} if config else {})


CONFIG = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32}
ODD = {
    "final_logits_bias": (1, 40),
    "cls.predictions.bias": (40,),
    "transposed_head": (5, 40),
    "model.odd.name": (40, 3),
}
OTHERS = {
    "talker.embed_tokens.weight": (40, 4),
    "vqmodel.quantize.embedding.weight": (40, 4),
    "model.embed_positions.weight": (40, 16),
    "model.counts": (3, 40, 2),
}


def test_tensors_follow_their_tokens_whatever_they_are_called(tmp_path):
    """Rows, columns and biases go by token; a talker, a codebook and positions by number."""
    chance = np.random.default_rng(0)
    tensors = {n: bf16(chance.normal(0, 1, shape)) for n, shape in (ODD | OTHERS).items()}
    config = CONFIG | {"talker_config": {"model_type": "t", "vocab_size": 40}}
    config |= {"model_type": "x", "vq_config": {"num_embeddings": 32}}
    roles = {role: words(WORDS) for role in ("base", "post")}
    recipe = lineage(tmp_path, tensors, **roles, new=words(MOVED, **config))
    assert found(plan(recipe)) == {"tokens-moved": Severity.NOTE}
    out = mix(recipe, tmp_path / "out").folder
    order = [WORDS.index(token) for token in MOVED]
    axes = {"final_logits_bias": 1, "transposed_head": 1} | dict.fromkeys(
        ["cls.predictions.bias", "model.odd.name", "model.embed_tokens.weight", "lm_head.weight"], 0
    )
    for name in (*axes, *OTHERS):
        new, post, base = (numbers(tmp_path / role, name) for role in ("new", "post", "base"))
        delta = post - base
        if name in axes:
            delta = np.take(delta, order, axes[name])
        assert np.allclose(numbers(out, name), new + delta, rtol=2**-7, atol=0), name


@pytest.mark.parametrize("broken", ["{", '{"model": {"vocab": {"a": Infinity}}}', "[]"])
def test_by_number_no_tokenizer_is_read(tmp_path, monkeypatch, broken):
    """--vocabulary id: whatever is in the tokenizer's files, even where they cannot be parsed."""
    roles = {role: {"tokenizer_json": broken} for role in ("base", "post", "new")}
    recipe = replace(lineage(tmp_path, **roles), vocabulary="id")
    monkeypatch.setattr(rows, "read_vocabulary", pytest.fail)
    assert found(plan(recipe)) == {}
    out = mix(recipe, tmp_path / "out").folder
    assert (out / "tokenizer.json").read_text() == broken


def test_a_tokenizer_that_is_not_understood(tmp_path):
    """Refused unless all files are equal, with what to do about it; and then by number."""
    contents = {"tokenizer_config_json": {"tokenizer_class": "UnheardOfTokenizer"}}
    roles = dict.fromkeys(("base", "post", "new"), contents)
    recipe = lineage(tmp_path, **roles)
    for role in roles:
        (tmp_path / role / "tokenizer.model").write_bytes(model(WORDS))
    assert found(plan(recipe)) == {}
    (tmp_path / "new" / "tokenizer.model").write_bytes(model(MOVED))
    made = plan(recipe)
    assert found(made) == {"tokenizer-unknown": Severity.REFUSED}
    finding = made.findings[0]
    assert "UnheardOfTokenizer" in finding.what
    assert "tokenizer.model" in finding.what
    assert "vocabulary='id'" in finding.remedy
    assert found(plan(replace(recipe, vocabulary="id"))) == {}
    assert found(plan(replace(recipe, vocabulary="new-base"))) == {}
    assert not plan(replace(recipe, allow=("tokenizer-unknown",))).refused


def test_no_tokenizer_to_compare_with(tmp_path):
    """A note where only the new base has one; nothing where nobody has."""
    assert found(plan(lineage(tmp_path / "none"))) == {}
    made = plan(lineage(tmp_path / "new", new=words(WORDS)))
    assert found(made) == {"tokenizer-missing": Severity.NOTE}


def test_other_counts_of_rows_by_number(tmp_path):
    """--vocabulary id with more rows in post: a warning, and the rows that both have are mixed."""
    recipe = replace(lineage(tmp_path), vocabulary="id")
    save(tmp_path / "post", longer(2))
    made = plan(recipe)
    assert found(made) == {"rows-by-number": Severity.WARNING}
    assert "42" in made.findings[0].what
    assert "40" in made.findings[0].what
    out = mix(recipe, tmp_path / "out").folder
    assert numbers(out, "lm_head.weight").shape == (40, 16)


CHAT = [*WORDS, "<end>"]
ROLES = {"tokenizer_config_json": {"eos_token": "<end>", "chat_template": "<end>"}}


def test_a_token_that_the_new_base_has_no_row_for(tmp_path):
    """Its tokenizer has post's end of turn, its embedding has not: refused; --take adds the row."""
    recipe = lineage(
        tmp_path, base=words(WORDS), post=words(CHAT) | ROLES, new=words(CHAT, vocab_size=40)
    )
    save(tmp_path / "post", longer(1))
    made = plan(recipe)
    assert found(made) == {"tokens-without-rows": Severity.REFUSED}
    assert "take=('<end>',)" in made.findings[0].remedy
    taken = replace(recipe, take=("<end>",))
    assert not plan(taken).refused
    out = mix(taken, tmp_path / "out").folder
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        post = numbers(tmp_path / "post", name)
        assert (numbers(out, name)[40] == post[40]).all()
    assert checkpoint(out).config["vocab_size"] == 41


def test_a_token_that_post_has_no_row_for(tmp_path):
    """It is left out with a note, and nothing asks for it."""
    recipe = lineage(tmp_path, base=words(WORDS), post=words(CHAT) | ROLES, new=words(WORDS))
    made = plan(recipe)
    assert found(made) == {"tokens-without-rows": Severity.NOTE}
    with pytest.raises(UsageError, match="there is no token"):
        plan(replace(recipe, graft=("<end>",)))


def test_tokens_that_only_a_config_names(tmp_path):
    """Post's chat tokens stand in added_tokens_decoder alone: refused with --graft, as ever."""
    decoder = {"40": {"content": "<end>", "special": True}}
    said = {"tokenizer_config_json": {**ROLES["tokenizer_config_json"]}}
    said["tokenizer_config_json"]["added_tokens_decoder"] = decoder
    recipe = lineage(tmp_path, base=words(WORDS), post=words(WORDS) | said, new=words(WORDS))
    save(tmp_path / "post", longer(1))
    made = plan(recipe)
    assert found(made) == {"post-only-tokens": Severity.REFUSED}
    assert made.refused[0].remedy == "`graft=('<end>',)`"
    assert not plan(replace(recipe, graft=("<end>",))).refused


def test_the_output_has_no_token_without_a_row(tmp_path):
    """Post's tokenizer has one that its embedding lacks ([PAD]): the new base's is used."""
    roles = {"tokenizer_config_json": {"eos_token": "t1", "pad_token": "<pad>"}}
    post = words([*WORDS, "<pad>"]) | roles | {"generation_config_json": {"pad_token_id": 40}}
    recipe = lineage(tmp_path, base=words(WORDS), post=post, new=words(WORDS))
    made = plan(recipe)
    given = {c.name: c for c in made.companions}
    assert given["tokenizer.json"].giver == "new base"
    assert dict(given["tokenizer_config.json"].changes)["pad_token"] is None
    assert dict(given["generation_config.json"].changes) == {"pad_token_id": None}


@pytest.mark.parametrize("with_base", [True, False])
def test_rows_that_no_tokenizer_names(tmp_path, with_base):
    """An adapter with more rows than its base and no tokenizer: somebody added tokens."""
    recipe = lineage(tmp_path, base=words(WORDS), new=words(WORDS))
    name, more = "base_model.model.model.embed_tokens.", np.ones((2, 42), np.float32)
    factors = {"lora_embedding_A": more, "lora_embedding_B": np.ones((16, 2), np.float32)}
    tensors = {name + key: factor for key, factor in factors.items()}
    put_adapter(tmp_path / "adapter", tensors)
    base = str(tmp_path / "base") if with_base else None
    made = plan(replace(recipe, deltas=(Delta(str(tmp_path / "adapter"), base),)))
    assert found(made) == {"rows-without-tokens": Severity.WARNING}
    assert "42" in made.findings[0].what


def test_weights_beside_an_adapter(tmp_path):
    """Rows of new tokens or a projector in a file of their own: a warning, not silence."""
    recipe = lineage(tmp_path, base=words(WORDS), new=words(WORDS))
    name = "base_model.model.model.layers.0.self_attn.q_proj."
    pair = {name + "lora_A.weight": np.ones((2, 16)), name + "lora_B.weight": np.ones((16, 2))}
    folder = put_adapter(
        tmp_path / "adapter", {key: value.astype(np.float32) for key, value in pair.items()}
    )
    recipe = replace(recipe, deltas=(Delta(str(folder)),))
    for harmless in ("optimizer.pt", "training_args.bin", "adapter_model.bin"):
        (folder / harmless).write_bytes(b"x")
    assert found(plan(recipe)) == {}
    (folder / "new_embeddings.safetensors").write_bytes(b"x")
    (folder / "non_lora_trainables.bin").write_bytes(b"x")
    made = plan(recipe)
    assert found(made) == {"weights-beside-adapter": Severity.WARNING}
    assert [f.what.partition(" ")[0] for f in made.findings] == [
        "new_embeddings.safetensors",
        "non_lora_trainables.bin",
    ]


def test_weights_beside_a_model(tmp_path):
    """A value head that only its trainer reads: a warning; the same model once more: nothing."""
    recipe = lineage(tmp_path)
    for harmless in ("consolidated.safetensors", "model.fp16.safetensors", "optimizer.pt"):
        (tmp_path / "post" / harmless).write_bytes(b"x")
    assert found(plan(recipe)) == {}
    (tmp_path / "post" / "value_head.safetensors").write_bytes(b"x")
    assert found(plan(recipe)) == {"weights-beside-model": Severity.WARNING}


def put_adapter(folder, tensors):
    """A PEFT adapter of rank 2 with these tensors."""
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(encode(tensors, {"format": "pt"}))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
