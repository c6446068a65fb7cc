"""Who gives which small file, and what is changed in it."""

import json

import pytest

from paramdelta import Delta, Recipe, Severity, mix, plan
from tests.checkpoints import llama, moved, save


def tokenizer(tokens, special=()):
    """A tokenizer.json with these tokens, numbered from 0."""
    vocab = {token: number for number, token in enumerate(tokens)}
    added = [{"id": vocab[t], "content": t, "special": True} for t in special]
    return {"model": {"type": "BPE", "vocab": vocab}, "added_tokens": added}


def lineage(tmp_path, files):
    """A recipe; ``files``: by role, the companion files."""
    base = llama()
    sets = {"base": base, "post": moved(base, 1), "new": moved(base, 2)}
    paths = {name: str(save(tmp_path / name, sets[name], **files.get(name, {}))) for name in sets}
    return Recipe(paths["new"], (Delta(paths["post"], paths["base"]),))


TOKENS = ["a", "b", "<eos>", "<reserved_1>"]


@pytest.fixture
def files():
    """Companions of a lineage in which everything differs that can."""
    return {
        "base": {
            "config_json": {"eos_token_id": 2, "rope_theta": 1e4},
            "tokenizer_json": tokenizer(TOKENS),
        },
        "post": {
            "config_json": {"eos_token_id": [2, 3], "rope_theta": 1e4, "torch_dtype": "bfloat16"},
            "tokenizer_json": tokenizer(["a", "b", "<eos>", "<end_of_turn>"], ["<end_of_turn>"]),
            "tokenizer_config_json": {"model_max_length": 8192, "eos_token": "<end_of_turn>"},
            "generation_config_json": {"eos_token_id": [2, 3], "temperature": 0.6},
            "chat_template_jinja": "{{ messages }}",
        },
        "new": {
            "config_json": {"eos_token_id": 2, "rope_theta": 5e5, "torch_dtype": "float32"},
            "tokenizer_json": tokenizer(TOKENS),
            "tokenizer_config_json": {"model_max_length": 131072, "eos_token": "<eos>"},
            "generation_config_json": {"eos_token_id": 2},
            "modeling_x_py": "raise SystemExit('code ran')",
        },
    }


def test_who_gives_what(tmp_path, files):
    """Positions from the new base, conversation from post, code copied and never run."""
    recipe = lineage(tmp_path, files)
    made = plan(recipe)
    assert {f.code: f.severity for f in made.findings} == {
        "tokens-renamed": Severity.NOTE,
        "positions": Severity.NOTE,
    }
    assert {c.name: c.giver for c in made.companions} == {
        "chat_template.jinja": "post",
        "config.json": "new base",
        "generation_config.json": "post",
        "modeling_x.py": "new base",
        "tokenizer.json": "post",
        "tokenizer_config.json": "post",
    }
    out = mix(recipe, tmp_path / "out").folder
    config = json.loads((out / "config.json").read_text())
    assert config == {"eos_token_id": [2, 3], "rope_theta": 5e5, "torch_dtype": "bfloat16"}
    told = json.loads((out / "tokenizer_config.json").read_text())
    assert told == {"model_max_length": 131072, "eos_token": "<end_of_turn>"}
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.6
    assert (out / "modeling_x.py").read_text() == files["new"]["modeling_x_py"]


def test_other_ids_correspond_by_token(tmp_path, files):
    """Where tokens have other ids, rows and ids of roles go by token; the tokenizer is the new
    base's, with post's template.
    """
    files["new"]["tokenizer_json"] = tokenizer(["b", "<eos>", "a", "<reserved_1>"])
    recipe = lineage(tmp_path, files)
    made = plan(recipe)
    assert not made.refused
    assert {f.code for f in made.findings} >= {"tokens-moved", "tokens-renamed"}
    assert {c.name: c.count for c in made.vocabulary} == {
        "same id": 1,
        "same token": 3,
        "padding": 28,
    }
    givers = {c.name: c.giver for c in made.companions}
    assert givers["tokenizer.json"] == "new base"
    assert givers["chat_template.jinja"] == "post"
    out = mix(recipe, tmp_path / "out").folder
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [1, 3]
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1, 3]


def test_dtype_is_told(tmp_path, files):
    """--dtype ends in config.json under the key that the new base uses."""
    recipe = lineage(tmp_path, files)
    made = plan(Recipe(recipe.new_base, recipe.deltas, "F16"))
    config = next(c for c in made.companions if c.name == "config.json")
    assert dict(config.changes)["torch_dtype"] == "float16"


def test_sentence_transformers_modules_come_along(tmp_path, files):
    """modules.json and the folders of its modules are companions too."""
    files["post"]["modules_json"] = "[]"
    recipe = lineage(tmp_path, files)
    (tmp_path / "post" / "1_Pooling").mkdir()
    (tmp_path / "post" / "1_Pooling" / "config.json").write_text("{}")
    out = mix(recipe, tmp_path / "out").folder
    assert (out / "1_Pooling" / "config.json").read_text() == "{}"
    assert "sentence-transformers" in (out / "README.md").read_text()


def test_damaged_tokenizers_are_clear_errors(tmp_path, files):
    """A tokenizer.json of the wrong form is refused with its place."""
    from paramdelta import CheckpointError

    files["post"]["tokenizer_json"] = {"model": {"vocab": [1, 2]}}
    with pytest.raises(CheckpointError, match="tokenizer"):
        plan(lineage(tmp_path, files))
