"""Facts that several files state: all their places, and which one a loader believes."""

import json

import pytest

from paramdelta.planning.facts import (
    FACTS,
    ROLES,
    changed,
    chat_templates,
    end_ids,
    extra_tokens,
    parts,
    role_tokens,
    same_ids,
    statements,
    template_text,
    token_text,
    value,
)
from tests.opening import files


def folder(path, contents):
    """The files of a folder with these contents: text, or an object written as JSON."""
    for name, content in {"weights.bin": "", **contents}.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content if isinstance(content, str) else json.dumps(content))
    return files(path)


def test_generation_config_comes_first(tmp_path):
    """Then config.json, and within it the top before the text section."""
    contents = {
        "config.json": {"eos_token_id": 1, "text_config": {"eos_token_id": 2, "pad_token_id": 3}},
        "generation_config.json": {"eos_token_id": [4, 5], "pad_token_id": None},
    }
    found = folder(tmp_path, contents)
    assert [str(s) for s in statements("eos_token_id", found)] == [
        "generation_config.json.eos_token_id",
        "config.json.eos_token_id",
        "config.json.text_config.eos_token_id",
    ]
    assert value("eos_token_id", found) == [4, 5]
    assert value("pad_token_id", found) == 3
    assert value("bos_token_id", found) is None
    assert end_ids(found) == {1, 2, 4, 5}


@pytest.mark.parametrize("decoder", [False, True])
def test_roles_in_two_files(tmp_path, decoder):
    """special_tokens_map.json counts unless tokenizer_config.json has added_tokens_decoder."""
    config = {"eos_token": "<config>", **({"added_tokens_decoder": {}} if decoder else {})}
    special = {"eos_token": {"content": "<map>"}, "pad_token": "<pad>"}
    found = folder(tmp_path, {"tokenizer_config.json": config, "special_tokens_map.json": special})
    assert role_tokens(found)["eos_token"] == ("<config>" if decoder else "<map>")


@pytest.mark.hf
@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("jinja", [False, True])
def test_as_transformers_reads_it(tmp_path, decoder, jinja):
    """Roles and chat template of a tokenizer that transformers has loaded are what we take."""
    hf, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"a": 0, "<1>": 1, "<2>": 2}, unk_token="a")
    config = {"eos_token": "<1>", "chat_template": "inline"}
    config |= {"added_tokens_decoder": {"1": {"content": "<1>"}}} if decoder else {}
    contents = {
        "config.json": {"model_type": "llama"},
        "tokenizer.json": tokenizers.Tokenizer(words).to_str(),
        "tokenizer_config.json": config,
        "special_tokens_map.json": {"eos_token": "<2>"},
        **({"chat_template.jinja": "file"} if jinja else {}),
    }
    found = folder(tmp_path, contents)
    loaded = hf.AutoTokenizer.from_pretrained(tmp_path)
    assert role_tokens(found)["eos_token"] == loaded.eos_token
    assert chat_templates(found) == {"default": loaded.chat_template}


def test_templates_of_all_places(tmp_path):
    """Files before the tokenizer's config before the processor's files."""
    named = [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}]
    contents = {
        "tokenizer_config.json": {"chat_template": named},
        "chat_template.json": {"chat_template": "C"},
    }
    found = folder(tmp_path / "old", contents)
    assert chat_templates(found) == {"default": "A", "rag": "B"}
    assert template_text(found) == "A\nB\nC"
    contents |= {"chat_template.jinja": "D", "additional_chat_templates/tool_use.jinja": "E"}
    found = folder(tmp_path / "new", contents)
    assert chat_templates(found) == {"default": "D", "tool_use": "E"}
    assert template_text(found) == "D\nE\nA\nB\nC"
    assert chat_templates(folder(tmp_path / "json", {"chat_template.json": {"chat_template": "C"}}))
    assert not chat_templates(folder(tmp_path / "none", {"tokenizer_config.json": {}}))


def test_quantization_is_found_wherever_it_is_said(tmp_path):
    """In any section of config.json and in the files of other tools; dtype likewise."""
    contents = {
        "config.json": {
            "torch_dtype": "float16",
            "text_config": {"quantization_config": {"dtype": "int8"}, "dtype": "bfloat16"},
            "vision_config": {"compression_config": {}, "vocabulary_map": {"dtype": 7}},
        },
        "hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}},
    }
    found = folder(tmp_path, contents)
    assert [str(s) for s in statements("quantization", found)] == [
        "config.json.text_config.quantization_config",
        "config.json.vision_config.compression_config",
        "hf_quant_config.json.quantization",
    ]
    assert [s.value for s in statements("dtype", found)] == ["bfloat16", "float16"]


def test_padding_side(tmp_path):
    """tokenizer_config.json, else the direction in tokenizer.json."""
    contents = {"tokenizer.json": {"padding": {"direction": "Left"}, "model": {}}}
    assert value("padding_side", folder(tmp_path / "a", contents)) == "Left"
    contents |= {"tokenizer_config.json": {"padding_side": "right"}}
    assert value("padding_side", folder(tmp_path / "b", contents)) == "right"


def test_every_fact_can_be_asked(tmp_path):
    """An empty folder states nothing; no fact fails on odd contents."""
    odd = {"config.json": {"text_config": 3, "dtype": {}}, "generation_config.json": {"x": []}}
    odd |= {"tokenizer_config.json": {"eos_token": 3, "added_tokens_decoder": 7}}
    for name in FACTS:
        assert value(name, folder(tmp_path / "empty", {})) is None
        statements(name, folder(tmp_path / "odd", odd))
    assert role_tokens(folder(tmp_path / "odd", odd)) == {}
    assert set(ROLES) < set(FACTS)


def test_sections_of_the_text_model():
    """The first section that describes the text model, and what is in it."""
    config = {"thinker_config": {"text_config": {"a": 1}}, "talker_config": {}, "decoder": 3}
    assert [keys for keys, _ in parts(config, "text")] == [
        (),
        ("thinker_config",),
        ("thinker_config", "text_config"),
    ]
    assert [keys for keys, _ in parts(config, "")] == [()]
    assert ("talker_config",) in [keys for keys, _ in parts(config, "any")]


def test_edits_of_nested_keys():
    """Whole top-level values, and only of what is really changed."""
    content = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": 4}
    edits = {("a",): 1, ("b", "c"): 9, ("b", "d", "e"): None, ("f",): None, ("g",): None}
    assert changed(content, edits) == {"b": {"c": 9, "d": {}}, "f": None}
    assert content["b"] == {"c": 2, "d": {"e": 3}}


def test_small_things(tmp_path):
    """Tokens as text or object; ids that agree; further special tokens."""
    assert [token_text(t) for t in ("a", {"content": "b"}, None, 3)] == ["a", "b", None, None]
    assert same_ids(1, [1, 2])
    assert same_ids([1, 2], [2, 1])
    assert not same_ids(1, 2)
    said = {"additional_special_tokens": ["x", {"content": "y"}, 3], "extra_special_tokens": None}
    assert extra_tokens(folder(tmp_path, {"tokenizer_config.json": said})) == ("x", "y")
