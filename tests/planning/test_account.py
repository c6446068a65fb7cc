"""The account: every file of every source, and what becomes of it."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from paramdelta import Delta, Recipe, mix, plan
from paramdelta.errors import CheckpointError
from paramdelta.planning.account import Fate
from paramdelta.planning.sidefiles import CONFIDENTIAL, OUTSIDE, UNNAMED
from tests.assembled import KINDS, embedder, pipeline, put
from tests.attacks.hostile import archive, state, torch_file
from tests.attacks.hostile import plain as hostile_plain
from tests.checkpoints import encode, llama, moved, save
from tests.opening import files as listed

TENSORS = torch_file({"voice": np.ones(4, np.float32)})


def plain(folder, seed):
    """A checkpoint without companions."""
    base = llama()
    tensors = moved(base, seed) if seed else base
    return save(folder, tensors, config_json={"model_type": "llama"})


def recipe_of(tmp_path, make=plain):
    """A recipe over three folders."""
    paths = {name: str(make(tmp_path / name, seed)) for seed, name in enumerate(KINDS)}
    return Recipe(paths["new"], (Delta(paths["post"], paths["base"]),))


def fates(made, role="post"):
    """Fate and reason of the files of a source, by name."""
    return {f.name: (f.fate, f.reason) for f in made.account if f.source == role}


LITTER = {
    "credentials.json": "{}",
    "hf_token.txt": "hf_x",
    "deploy.pem": "-----BEGIN",
    "id_rsa": "x",
    "notes.txt": "the token is hf_" + "a" * 34,
    "settings.json": '{"api_key": "0123456789abcdef"}',
    "optimizer.pt": "x",
    "rng_state_0.pth": "x",
    "training_args.bin": "x",
    "trainer_state.json": "{}",
    "train.log": "x",
    "runs/events.out.tfevents.1": "x",
    "wandb/config.json": "{}",
    "checkpoint-500/model.safetensors": "x",
    "onnx/model.onnx": "x",
    "model-q4.gguf": "x",
    "tf_model.h5": "x",
    "pytorch_model.bin": "x",
    "model.fp16.safetensors": "x",
    "consolidated.safetensors": "x",
    "params.json": "{}",
    "README.md": "x",
    "figure.png": "x",
    "samples.jsonl": "x",
    "mergekit_config.yml": "x",
    "somewhere/else.txt": "x",
}


def test_what_stays_behind(tmp_path):
    """Secrets, traces of training, other formats and documents stay, each with its reason."""
    recipe = recipe_of(tmp_path)
    for role in ("post", "new"):
        for name, content in LITTER.items():
            put(tmp_path / role, name, content)
    made = plan(recipe)
    found = fates(made)
    for name in LITTER:
        assert found[name][0] in (Fate.LEFT, Fate.REPLACED), name
        assert found[name][1], name
    assert "secret" in found["credentials.json"][1]
    assert found["notes.txt"][1] == found["settings.json"][1] == CONFIDENTIAL
    assert "variant" in found["model.fp16.safetensors"][1]
    assert found["somewhere/else.txt"][1] == UNNAMED
    out = mix(made, tmp_path / "out").folder
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    made_anew = {"README.md", "paramdelta.lock.json", "recipe.yaml"}
    assert written == {"model.safetensors", "config.json"} | made_anew


ASSETS = {
    "bpe.codes": "a b",
    "voices.bin": TENSORS,
    "speakers.pt": TENSORS,
    "added_things.dat": "x",
    "additional_chat_templates/tool.jinja": "x",
    "custom_generate/generate.py": "from .inner import x\n",
    "custom_generate/inner.py": "",
    "custom_generate/requirements.txt": "",
    "mel/filters.npz": b"PK\x03\x04",
    "LICENSE": "free",
    "preprocessor_config.json": {"filters": "mel/filters.npz"},
}


@pytest.mark.parametrize("role", ["post", "new"])
def test_what_travels(tmp_path, role):
    """Assets of any suffix, side weights, code and templates come along, whoever has them."""
    recipe = recipe_of(tmp_path)
    for name, content in ASSETS.items():
        put(tmp_path / role, name, content)
    made = plan(replace(recipe, vocabulary="id"))
    found = fates(made, {"post": "post", "new": "new base"}[role])
    assert {name for name in ASSETS if found[name][0] is not Fate.TAKEN} == set()
    out = mix(made, tmp_path / "out").folder
    for name, content in ASSETS.items():
        wanted = content if isinstance(content, bytes) else None
        assert (out / name).exists(), name
        assert wanted is None or (out / name).read_bytes() == wanted


def test_pickles_that_run_code_stay(tmp_path):
    """A side file that is a pickle of objects is not handed on."""

    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    recipe = recipe_of(tmp_path)
    put(tmp_path / "post", "extra.bin", pickle.dumps(Evil()))
    command = archive(state(b=b"cposix\nsystem\n"))
    dropped = archive(state(b=b"cmodule\nThing\n0" + hostile_plain(1)))  # made, then thrown away
    put(tmp_path / "post", "command.pt", command)
    put(tmp_path / "post", "dropped.pt", dropped)
    made = plan(recipe)
    for name in ("extra.bin", "command.pt", "dropped.pt"):
        assert fates(made)[name][0] is Fate.LEFT
    assert "module.Thing" in fates(made)["dropped.pt"][1]


def test_side_weights_that_differ_are_a_warning(tmp_path):
    """They are post's, and not mixed: said, unless both are the same."""
    recipe = recipe_of(tmp_path)
    put(tmp_path / "post", "speakers.pt", TENSORS)
    put(tmp_path / "new", "speakers.pt", TENSORS)
    assert "side-weights" not in {f.code for f in plan(recipe).findings}
    put(tmp_path / "new", "speakers.pt", torch_file({"voice": np.zeros(4, np.float32)}))
    assert "side-weights" in {f.code for f in plan(recipe).findings}


@pytest.mark.parametrize("make", [plain, embedder, pipeline])
def test_the_account_covers_every_file_once(tmp_path, make):
    """For each source exactly the files that a listing finds, and all reasons are given."""
    recipe = recipe_of(tmp_path, make)
    for role in KINDS:
        for name, content in {**LITTER, **ASSETS}.items():
            if name != "pytorch_model.bin":
                put(tmp_path / role, name, content)
    made = plan(recipe)
    for role, folder in {"new base": "new", "post": "post", "base": "base"}.items():
        names = [f.name for f in made.account if f.source == role]
        assert sorted(names) == sorted(listed(tmp_path / folder))
    assert all(fate.reason for fate in made.account)
    taken = [f for f in made.account if f.fate is Fate.TAKEN]
    assert len(taken) == len(made.companions)
    assert made.to_dict()["account"][0].keys() == {"source", "name", "fate", "reason"}


def test_a_single_file_is_accounted_for(tmp_path):
    """Weight files given by themselves are mixed."""
    recipe = recipe_of(tmp_path)
    alone = {name: f"{tmp_path}/{name}/model.safetensors" for name in KINDS}
    made = plan(Recipe(alone["new"], (Delta(alone["post"], alone["base"]),)))
    assert [(f.name, f.fate) for f in made.account] == [("model.safetensors", Fate.MIXED)] * 3
    assert plan(recipe).account


CODE = "from transformers import PreTrainedTokenizerFast\nfrom .helpers import x\n"


def test_code_of_posts_files_comes_along(tmp_path):
    """What auto_map names in files of post, and what that imports; other code stays."""
    recipe = recipe_of(tmp_path)
    post = tmp_path / "post"
    put(post, "tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}}})
    auto = {"AutoTokenizer": [None, "tokenization_chat.Chat"]}
    put(post, "tokenizer_config.json", {"auto_map": auto})
    put(post, "tokenization_chat.py", CODE)
    put(post, "helpers.py", "from . import more, absent\n")
    put(post, "more.py", "")
    put(post, "train.py", "")
    put(post, "processor_config.json", {"auto_map": {"AutoProcessor": "other/repo--p.P"}})
    found = fates(plan(recipe))
    code = {n: f for n, (f, _) in found.items() if n.endswith(".py")}
    assert code == {
        "tokenization_chat.py": Fate.TAKEN,
        "helpers.py": Fate.TAKEN,
        "more.py": Fate.TAKEN,
        "train.py": Fate.LEFT,
    }


def test_code_that_both_need_and_that_differs(tmp_path):
    """The model's code stays the new base's; code that is not there is said."""
    recipe = recipe_of(tmp_path)
    for role in ("post", "new"):
        put(tmp_path / role, "shared.py", f"# {role}")
    config = {"model_type": "llama", "auto_map": {"AutoConfig": "shared.C"}}
    put(tmp_path / "new", "config.json", config)
    named = {"AutoProcessor": "shared.P", "AutoImageProcessor": "gone.I"}
    put(tmp_path / "post", "preprocessor_config.json", {"auto_map": named})
    made = plan(recipe)
    assert {"code-differs", "code-missing"} <= {f.code for f in made.findings}
    (shared,) = (c for c in made.companions if c.name == "shared.py")
    assert shared.giver == "new base"


def test_a_template_without_a_tokenizer(tmp_path):
    """A post with a template alone: the tokenizer is the new base's, with post's template."""
    recipe = recipe_of(tmp_path)
    words = {"model": {"type": "BPE", "vocab": {"a": 0}}}
    put(tmp_path / "new", "tokenizer.json", words)
    put(tmp_path / "new", "tokenizer_config.json", {"chat_template": "old"})
    put(tmp_path / "post", "chat_template.jinja", "new")
    put(tmp_path / "post", "tokenizer_config.json", {"chat_template": "inline"})
    out = mix(recipe, tmp_path / "out").folder
    assert json.loads((out / "tokenizer.json").read_text()) == words
    assert (out / "chat_template.jinja").read_text() == "new"
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == "new"


def test_a_template_and_no_tokenizer_anywhere(tmp_path):
    """Nothing to take: it is said."""
    recipe = recipe_of(tmp_path)
    put(tmp_path / "post", "chat_template.jinja", "new")
    assert "tokenizer-missing" in {f.code for f in plan(recipe).findings}


def test_vocabularies_of_other_names(tmp_path):
    """A file that tokenizer_config.json or the tokenizer's code names belongs to the tokenizer: it
    comes from the giver of the tokenizer.
    """
    recipe = recipe_of(tmp_path)
    for role in ("post", "new"):
        put(tmp_path / role, "pieces.dat", role)
        put(tmp_path / role, "words.lst", role)
        auto = {"AutoTokenizer": ["tok.T", None]}
        put(
            tmp_path / role, "tokenizer_config.json", {"vocab_file": "pieces.dat", "auto_map": auto}
        )
        put(tmp_path / role, "tok.py", 'FILES = {"vocab_file": "words.lst"}\n')
    made = plan(recipe)
    givers = {c.name: c.giver for c in made.companions}
    assert givers["pieces.dat"] == givers["words.lst"] == givers["tokenizer_config.json"]


def test_git_lfs_pointers_are_refused(tmp_path):
    """A companion that was not downloaded is not copied."""
    from paramdelta.errors import CheckpointError

    recipe = recipe_of(tmp_path)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 499723\n"
    put(tmp_path / "post", "tokenizer.model", pointer)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model") as error:
        plan(recipe)
    assert error.value.code == "lfs-pointer"


def test_files_without_an_index(tmp_path):
    """All are read where their tensors differ, with a note; the same tensor twice is refused."""
    from paramdelta.errors import CheckpointError

    tensors = llama()
    half = dict(list(tensors.items())[:5])
    rest = {name: value for name, value in tensors.items() if name not in half}
    recipe = recipe_of(tmp_path)
    (tmp_path / "post" / "model.safetensors").unlink()
    put(tmp_path / "post", "a.safetensors", encode(half))
    put(tmp_path / "post", "b.safetensors", encode(rest))
    made = plan(recipe)
    assert "files-without-index" in {f.code for f in made.findings}
    assert not made.refused
    put(tmp_path / "post", "b.safetensors", encode(tensors))
    with pytest.raises(CheckpointError) as error:
        plan(recipe)
    assert error.value.code == "duplicate-tensor"


def test_links_out_of_a_source_are_left_or_refused(tmp_path):
    """A link to a file of the user: left if nothing needs it, refused if it is a model's file."""
    recipe = recipe_of(tmp_path)
    (tmp_path / "mine").write_text("{}")
    (tmp_path / "post" / "notes.txt").symlink_to(tmp_path / "mine")
    assert fates(plan(recipe))["notes.txt"] == (Fate.LEFT, OUTSIDE)
    out = mix(recipe, tmp_path / "out").folder
    assert not (out / "notes.txt").exists()
    for name in ("vocab.txt", "chat_template.jinja", "generation_config.json", "LICENSE"):
        (tmp_path / "post" / name).symlink_to(tmp_path / "mine")
        with pytest.raises(CheckpointError, match="leads out of the folder"):
            plan(recipe)
        (tmp_path / "post" / name).unlink()


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "vocab.txt", "merges.txt", "chat_template.jinja"]
)
def test_files_that_are_too_large_are_not_read(tmp_path, name):
    """A sparse file of 6 GB takes no room, and would take all memory."""
    recipe = recipe_of(tmp_path)
    for role in ("post", "new"):
        with (tmp_path / role / name).open("wb") as file:
            file.truncate(6 << 30)
    with pytest.raises(CheckpointError, match="too large for what it should be"):
        mix(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
