"""Who gives which small file, and what is changed in it."""

import json
from dataclasses import replace

import pytest

from paramdelta import Delta, Recipe, Severity, mix, plan
from paramdelta.errors import UsageError
from paramdelta.planning.facts import (
    chat_templates,
    inline_templates,
    role_tokens,
    same_ids,
    statements,
    template_text,
    value,
)
from paramdelta.planning.tokenizer import read_vocabulary
from tests.checkpoints import llama, moved, save
from tests.opening import files as opened


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
    files["post"]["modules_json"] = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    recipe = lineage(tmp_path, files)
    (tmp_path / "post" / "1_Pooling").mkdir()
    (tmp_path / "post" / "1_Pooling" / "config.json").write_text("{}")
    out = mix(recipe, tmp_path / "out").folder
    assert (out / "1_Pooling" / "config.json").read_text() == "{}"
    assert "sentence-transformers" in (out / "README.md").read_text()


def test_a_config_that_is_a_list_names_no_code(tmp_path, files):
    """data_config.json of sentence-transformers, as all-MiniLM-L6-v2 has it, is copied."""
    data = [{"name": "pairs.jsonl.gz", "lines": 1, "weight": 1}]
    for role in files:
        files[role]["data_config_json"] = data
    out = mix(lineage(tmp_path, files), tmp_path / "out").folder
    assert json.loads((out / "data_config.json").read_text()) == data


def test_damaged_tokenizers_are_clear_errors(tmp_path, files):
    """A tokenizer.json of the wrong form is refused with its place."""
    from paramdelta import CheckpointError

    files["post"]["tokenizer_json"] = {"model": {"vocab": [1, 2]}}
    with pytest.raises(CheckpointError, match="tokenizer"):
        plan(lineage(tmp_path, files))


# -- one fact, one value ---------------------------------------------------------------------------

EXTENDED = ["neu", *TOKENS]  # other ids than the others' tokenizers


def out_files(tmp_path, files, **options):
    """Mix, and the files of the output."""
    folder = mix(replace(lineage(tmp_path, files), **options), tmp_path / "out").folder
    return opened(folder)


@pytest.mark.parametrize(
    ("post", "new", "expected"),
    [
        # post has no generation_config.json, the new base has one that stops elsewhere
        ({"config_json": {"eos_token_id": 3}}, {"generation_config_json": {"eos_token_id": 2}}, 3),
        # post's two files disagree: generation stops where generation_config.json says
        (
            {"config_json": {"eos_token_id": 2}, "generation_config_json": {"eos_token_id": 3}},
            {"config_json": {"eos_token_id": 2}},
            3,
        ),
        # they disagree, and config.json gives a number: it stays one
        (
            {
                "config_json": {"eos_token_id": 1},
                "generation_config_json": {"eos_token_id": [3, 2]},
            },
            {"config_json": {"eos_token_id": 2}},
            [3, 2],
        ),
        # one lists more than the other: both stay as post has them
        (
            {
                "config_json": {"eos_token_id": 3},
                "generation_config_json": {"eos_token_id": [3, 2]},
            },
            {"config_json": {"eos_token_id": 1, "text_config": {"eos_token_id": 1}}},
            [3, 2],
        ),
        # post is a text model, the new base a multimodal one
        (
            {"config_json": {"eos_token_id": 3}},
            {"config_json": {"text_config": {"eos_token_id": 2}}},
            3,
        ),
        # post states it in its text section only
        (
            {"config_json": {"text_config": {"eos_token_id": 3}}},
            {"config_json": {"eos_token_id": 2}, "generation_config_json": {"eos_token_id": 2}},
            3,
        ),
    ],
)
@pytest.mark.parametrize("moved_ids", [False, True])
def test_the_output_stops_where_post_stops(tmp_path, post, new, expected, moved_ids):
    """Every place in the output agrees, and the one that a loader believes is post's value."""
    tokens = {"tokenizer_json": tokenizer(TOKENS)}
    ours = {"tokenizer_json": tokenizer(EXTENDED)} if moved_ids else tokens
    contents = {"base": tokens, "post": tokens | post, "new": ours | new}
    found = out_files(tmp_path, contents)
    shift = int(moved_ids)
    expected = [i + shift for i in expected] if isinstance(expected, list) else expected + shift
    assert value("eos_token_id", found) == expected
    assert all(same_ids(s.value, expected) for s in statements("eos_token_id", found))
    assert all(type(s.value) is int for s in statements("eos_token_id", found)[1:])


def test_ids_of_generation_settings_however_nested(tmp_path, files):
    """Lists of lists lose a sequence whose token is missing; other numbers are left alone."""
    files["post"] = {"tokenizer_json": tokenizer([*TOKENS, "<only>"])}
    files["new"]["tokenizer_json"] = tokenizer(EXTENDED)
    files["post"]["generation_config_json"] = {
        "eos_token_id": 2,
        "bad_words_ids": [[0, 1], [0, 4], [3]],
        "suppress_tokens": [0, 4],
        "lang_to_id": {"<|en|>": 0, "<|xx|>": 4},
        "max_new_tokens": 3,
    }
    found = out_files(tmp_path, files).json("generation_config.json")
    assert found == {
        "eos_token_id": 3,
        "bad_words_ids": [[1, 2], [4]],
        "suppress_tokens": [1],
        "lang_to_id": {"<|en|>": 1},
        "max_new_tokens": 3,
    }


INLINE = {"tokenizer_config_json": {"chat_template": "inline"}}
NAMED = [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}]
PLACES = {
    "none": {},
    "inline": INLINE,
    "named": {"tokenizer_config_json": {"chat_template": NAMED}},
    "file": {"chat_template_jinja": "file"},
    "both": {**INLINE, "chat_template_jinja": "file"},
    "processor": {"chat_template_json": {"chat_template": "processor"}},
    "old and new": {"chat_template_jinja": "f", "chat_template_json": {"chat_template": "f"}},
}


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("new", PLACES)
@pytest.mark.parametrize("post", PLACES)
def test_templates_are_those_of_post_in_every_place(tmp_path, post, new, same):
    """Whatever places the two use: post's template, everywhere; the new base's if post has none."""
    config = {"tokenizer_config_json": {"model_max_length": 9}}
    roles = {
        role: {"tokenizer_json": tokenizer(EXTENDED if role == "new" and not same else TOKENS)}
        | config
        | {k: ({**config.get(k, {}), **v} if isinstance(v, dict) else v) for k, v in more.items()}
        for role, more in (("base", {}), ("post", PLACES[post]), ("new", PLACES[new]))
    }
    found = out_files(tmp_path, roles)
    giver = opened(tmp_path / ("new" if post == "none" else "post"))
    assert chat_templates(found) == chat_templates(giver)
    texts = {str(inline_templates(s.value)) for s in statements("chat_template", found) if s.keys}
    assert len(texts) <= 1
    assert template_text(found) in (template_text(giver), "\n".join(chat_templates(found).values()))


def test_extra_templates_come_along(tmp_path, files):
    """The folder of named templates is post's, and none of the new base's is left."""
    recipe = lineage(tmp_path, files)
    for role, name in (("post", "rag"), ("new", "tool_use")):
        folder = tmp_path / role / "additional_chat_templates"
        folder.mkdir()
        (folder / f"{name}.jinja").write_text(role)
    out = mix(recipe, tmp_path / "out").folder
    assert chat_templates(opened(out)) == {"default": "{{ messages }}", "rag": "post"}
    assert not (out / "additional_chat_templates" / "tool_use.jinja").exists()


def test_a_template_without_a_tokenizer(tmp_path, files):
    """Post has template and roles, and no vocabulary: the new base's tokenizer, with both."""
    files["post"] = {}
    files["post"]["tokenizer_config_json"] = {"chat_template": "T", "eos_token": "b"}
    found = out_files(tmp_path, files)
    assert "tokenizer.json" in found
    assert chat_templates(found) == {"default": "T"}
    assert role_tokens(found)["eos_token"] == "b"


@pytest.mark.parametrize("place", ["tokenizer_config_json", "special_tokens_map_json"])
def test_roles_from_either_file(tmp_path, files, place):
    """Post's roles, wherever it states them, end in both files of an extended tokenizer."""
    files["new"] = {"tokenizer_json": tokenizer(EXTENDED), "tokenizer_config_json": {}}
    files["post"] = {"tokenizer_json": tokenizer(TOKENS)}
    files["new"]["special_tokens_map_json"] = {"eos_token": "<eos>", "pad_token": "<eos>"}
    files["post"][place] = {"eos_token": {"content": "b"}, "unk_token": "a", "mask_token": "none"}
    found = out_files(tmp_path, files)
    assert {s.value for s in statements("eos_token", found)} == {"b"}
    assert len(statements("eos_token", found)) == 2
    assert role_tokens(found) == {"eos_token": "b", "unk_token": "a", "pad_token": "<eos>"}


def test_roles_of_one_tokenizer_agree(tmp_path, files):
    """Post's own files name different tokens: the one that transformers takes is in both."""
    files["post"]["special_tokens_map_json"] = {"eos_token": "a", "pad_token": "b"}
    files["post"]["tokenizer_config_json"] = {"eos_token": {"content": "b"}, "unk_token": None}
    found = out_files(tmp_path, files)
    assert [s.value for s in statements("eos_token", found)] == ["a", "a"]
    assert role_tokens(found) == {"eos_token": "a", "pad_token": "b"}
    assert found.json("tokenizer_config.json")["unk_token"] is None


def test_dtype_in_every_place(tmp_path, files):
    """Under both keys and in every section; what is not a dtype stays."""
    files["new"]["config_json"] |= {
        "dtype": "float32",
        "text_config": {"torch_dtype": "float16", "vocabulary_map": {"dtype": 5}},
        "vision_config": {"dtype": "float32"},
    }
    recipe = replace(lineage(tmp_path, files), dtype="F16")
    found = opened(mix(recipe, tmp_path / "out").folder)
    assert {s.value for s in statements("dtype", found)} == {"float16"}
    assert len(statements("dtype", found)) == 4
    assert found.json("config.json")["text_config"]["vocabulary_map"] == {"dtype": 5}


def test_a_head_of_its_own_in_every_place(tmp_path, files):
    """Post has untied its head: no section of the output's config.json says that it is tied."""
    tied = {"tie_word_embeddings": True}
    files["base"]["config_json"] |= tied
    files["new"]["config_json"] |= tied | {"text_config": {"model_type": "x", **tied}}
    recipe = lineage(tmp_path, files)
    for role in ("base", "new"):
        tensors = llama() if role == "base" else moved(llama(), 2)
        del tensors["lm_head.weight"]
        save(tmp_path / role, tensors)
    found = opened(mix(recipe, tmp_path / "out").folder)
    assert [s.value for s in statements("tie_word_embeddings", found)] == [False, False]


def test_sizes_of_a_grown_vocabulary(tmp_path, files):
    """A graft beyond the last row is stated wherever the size of the text vocabulary is."""
    tokens = [f"t{i}" for i in range(32)]
    for role in ("base", "new"):
        files[role]["tokenizer_json"] = tokenizer(tokens)
    del files["new"]["tokenizer_config_json"]
    files["post"]["tokenizer_json"] = tokenizer([*tokens[:31], "<end_of_turn>"])
    files["new"]["config_json"] |= {
        "vocab_size": 32,
        "text_config": {"model_type": "x", "vocab_size": 32},
        "vision_config": {"model_type": "x", "vocab_size": 32},
    }
    found = out_files(tmp_path, files, graft=("<end_of_turn>",)).json("config.json")
    sizes = [found["vocab_size"], *(found[f"{p}_config"]["vocab_size"] for p in ("text", "vision"))]
    assert sizes == [33, 33, 32]


def test_nothing_says_that_the_output_is_quantized(tmp_path, files):
    """In no section of config.json, and in no file of another tool."""
    quantized = {"quantization_config": {"quant_method": "fp8"}}
    files["new"]["config_json"] |= quantized | {"text_config": {"compression_config": {}}}
    files["new"]["hf_quant_config_json"] = {"quantization": {"quant_algo": "FP8"}}
    files["post"]["quantize_config_json"] = {"bits": 4}
    assert statements("quantization", out_files(tmp_path, files)) == ()


PROCESSORS = [
    {"type": "RobertaProcessing", "sep": ["<eos>", 2], "cls": ["a", 0], "trim_offsets": True},
    {"type": "BertProcessing", "sep": ["<eos>", 2], "cls": ["a", 0]},
    {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<eos>": {"id": "<eos>", "ids": [2, 0], "tokens": ["<eos>", "a"]}},
    },
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda p: p["type"])
def test_use_of_an_extended_tokenizer(tmp_path, files, processor):
    """How post ends and pads its texts, with the ids of the output."""
    ours, theirs = tokenizer(EXTENDED), tokenizer(TOKENS)
    padding = {"direction": "Right", "pad_id": 0, "pad_token": "neu", "pad_type_id": 0}
    ours |= {"post_processor": {"type": "ByteLevel"}, "padding": padding}
    inner = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, processor]}
    theirs |= {"post_processor": inner}
    files["new"]["tokenizer_json"], files["post"]["tokenizer_json"] = ours, theirs
    said = {"padding_side": "left", "pad_token": "b", "add_eos_token": True}
    files["post"]["tokenizer_config_json"] = said
    found = out_files(tmp_path, files)
    content = found.json("tokenizer.json")
    text = json.dumps(content["post_processor"]["processors"][1])
    assert json.loads(text.replace('"<eos>", 3', '"<eos>", 2').replace('"a", 1', '"a", 0')) == (
        processor
        if processor["type"] != "TemplateProcessing"
        else {
            **processor,
            "special_tokens": {"<eos>": {"id": "<eos>", "ids": [3, 1], "tokens": ["<eos>", "a"]}},
        }
    )
    assert content["padding"] == padding | {"direction": "Left", "pad_token": "b", "pad_id": 2}
    assert found.json("tokenizer_config.json").items() >= said.items()


def test_a_processor_with_a_token_that_is_missing(tmp_path, files):
    """The new base's own is kept."""
    ours, theirs = tokenizer(EXTENDED), tokenizer([*TOKENS, "<only>"])
    ours["post_processor"] = {"type": "ByteLevel"}
    theirs["post_processor"] = {"type": "BertProcessing", "sep": ["<only>", 4], "cls": ["a", 0]}
    contents = {"new": {"tokenizer_json": ours}, "post": {"tokenizer_json": theirs}}
    found = out_files(tmp_path, contents)
    assert found.json("tokenizer.json")["post_processor"] == {"type": "ByteLevel"}


def test_grafts_beside_older_files(tmp_path, files):
    """With added_tokens.json alone: what it holds is not lost to the decoder that is written."""
    words = {token: i for i, token in enumerate(TOKENS)}
    for role in ("base", "post", "new"):
        files[role].pop("tokenizer_json")
        files[role]["vocab_json"] = words
    files["new"]["added_tokens_json"] = {"<neu>": 4}
    files["post"]["added_tokens_json"] = {"<end_of_turn>": 4}
    recipe = replace(lineage(tmp_path, files), graft=("<end_of_turn>",))
    found = opened(mix(recipe, tmp_path / "out").folder)
    vocabulary = read_vocabulary(found, {}, {})
    assert vocabulary.tokens == dict(enumerate([*TOKENS, "<neu>", "<end_of_turn>"]))


def test_grafts_that_no_file_can_hold(tmp_path, files):
    """A tokenizer without any file for added tokens: an error, not a token that is lost."""
    for role in ("base", "post", "new"):
        files[role].pop("tokenizer_json")
        files[role]["vocab_json"] = {token: i for i, token in enumerate(TOKENS)}
    del files["new"]["tokenizer_config_json"], files["post"]["tokenizer_config_json"]
    files["post"]["added_tokens_json"] = {"<end_of_turn>": 4}
    with pytest.raises(UsageError, match="no file"):
        plan(replace(lineage(tmp_path, files), graft=("<end_of_turn>",)))


@pytest.mark.parametrize("rows", [3, 4, 5])
def test_whose_tokenizer_where_none_was_read(tmp_path, files, rows):
    """--vocabulary id: post's, which can be broken, unless the new base has more rows."""
    files["post"]["tokenizer_json"] = "{ broken"
    files["post"]["config_json"] |= {"vocab_size": 4}
    files["new"]["config_json"] |= {"vocab_size": rows}
    made = plan(replace(lineage(tmp_path, files), vocabulary="id"))
    givers = {c.name: c.giver for c in made.companions}
    assert givers["tokenizer.json"] == ("new base" if rows > 4 else "post")
    assert givers["chat_template.jinja"] == "post"
    assert not made.refused


@pytest.mark.parametrize("more", [[], ["new"]])
def test_text_is_split_by_other_rules(tmp_path, files, more):
    """A note says whose rules are used: post's with its tokenizer, else the new base's."""
    for role in ("base", "post", "new"):
        files[role]["tokenizer_json"] = tokenizer(TOKENS + (more if role == "new" else []))
    files["post"]["tokenizer_config_json"]["eos_token"] = "<eos>"
    assert "splitting-differs" not in {f.code for f in plan(lineage(tmp_path, files)).findings}
    files["post"]["tokenizer_json"] |= {"normalizer": {"type": "Lowercase"}}
    made = plan(lineage(tmp_path, files))
    (finding,) = (f for f in made.findings if f.code == "splitting-differs")
    assert finding.severity is Severity.NOTE
    assert f"(normalizer); those of {'new base' if more else 'post'}" in finding.what
