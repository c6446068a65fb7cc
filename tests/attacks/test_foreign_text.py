"""Names from strangers, in every place that has names, through every command.

Neither what the commands print nor the cards that they write hold a raw control character, an
override of the reading order or live HTML; and no name causes a traceback.
"""

import json
import os
import sys

import pytest

from tests.checkpoints import llama, moved, save
from tests.cli.test_app import process, run
from tests.conftest import CONFIG

NASTY = "a\x1b[31m\x9b2J\u202eb\x07\x7f[red]x[/red]<img src=x onerror=alert(1)>`|```\u2028![i](j)"
TEXTS = {"lines": NASTY + "\n# c\r\n---\n", "surrogate": NASTY + "\ud800"}
TOKENIZER = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}


def _tokens(text):
    vocab = {f"t{i}": i for i in range(31)} | {text: 31}
    return json.dumps(TOKENIZER | {"model": {"type": "BPE", "vocab": vocab, "merges": []}})


def _tensors(text, seed):
    base = {**llama(), f"model.{text}.weight": llama()["model.norm.weight"]}
    return base if seed == 0 else moved(base, seed)


def _folders(tmp_path, make):
    return [make(tmp_path / name, seed) for seed, name in enumerate(("base", "post", "new"))]


def tensor(tmp_path, text):
    """A tensor's name."""
    return _folders(tmp_path, lambda f, seed: save(f, _tensors(text, seed), config_json=CONFIG))


def tensor_of_post(tmp_path, text):
    """The name of a tensor that only post has: a refusal."""

    def make(folder, seed):
        tensors = _tensors(text, seed) if seed == 1 else moved(llama(), seed)
        return save(folder, tensors, config_json=CONFIG)

    return _folders(tmp_path, make)


def token(tmp_path, text):
    """A token that only post has."""

    def make(folder, seed):
        tokens = _tokens(text if seed == 1 else "t31")
        return save(folder, moved(llama(), seed), config_json=CONFIG, tokenizer_json=tokens)

    return _folders(tmp_path, make)


def config(tmp_path, text):
    """Keys and values of small files."""

    def make(folder, seed):
        given = CONFIG | {
            "architectures": [text],
            text: text,
            "torch_dtype": text,
            "eos_token_id": 1,
        }
        return save(
            folder, moved(llama(), seed), config_json=given, tokenizer_json=_tokens("t31"),
            generation_config_json={"eos_token_id": 2, text: text},
            tokenizer_config_json={"pad_token": text, "chat_template": text},
        )  # fmt: skip

    return _folders(tmp_path, make)


def shard(tmp_path, text):
    """The names of weight files, and of one in the index that is absent."""

    def make(folder, seed):
        tensors = moved(llama(), seed)
        save(folder, tensors, config_json=CONFIG)
        name = text.replace("/", "") + ".safetensors"
        (folder / "model.safetensors").rename(folder / os.fsdecode(name.encode("utf-8", "replace")))
        weights = dict.fromkeys(tensors, name)
        if seed == 1:
            weights["lm_head.weight"] = "absent" + name
        index = json.dumps({"weight_map": weights})
        (folder / "model.safetensors.index.json").write_text(index)
        return folder

    return _folders(tmp_path, make)


def card(tmp_path, text):
    """The metadata and the license of a source."""

    def make(folder, seed):
        save(folder, moved(llama(), seed), config_json=CONFIG)
        quoted = json.dumps(text)
        (folder / "README.md").write_text(
            f"---\nlicense: other\nlicense_name: {quoted}\nlicense_link: {quoted}\n"
            f"language: [{quoted}]\nlibrary_name: {quoted}\n---\n"
            if seed
            else "---\ndate: 2024-02-30\n---\n"
        )
        (folder / "LICENSE").write_bytes(text.encode("utf-8", "surrogatepass"))
        return folder

    return _folders(tmp_path, make)


def folder(tmp_path, text):
    """The names of the folders themselves."""
    name = os.fsdecode(text.replace("/", "").encode("utf-8", "replace") + b"\xff")
    return _folders(
        tmp_path, lambda f, seed: save(f.with_name(f"{f.name}{name}"), moved(llama(), seed),
        config_json=CONFIG)
    )  # fmt: skip


PLACES = (tensor, tensor_of_post, token, config, shard, card, folder)


def check_output(result):
    """Nothing of what a command printed does anything to a terminal."""
    said = result.stdout + result.stderr
    assert said.replace("\n", "").isprintable(), ascii(said)
    assert "Traceback" not in said, said
    assert result.returncode in (0, 2, 3, 4), said
    if result.args[-1] == "--json":
        for line in result.stdout.splitlines():
            json.loads(line)


def check_card(folder):
    """Nothing of a card that was written does anything to a renderer."""
    if not (folder / "README.md").is_file():
        return
    text = (folder / "README.md").read_text()
    assert text.replace("\n", "").isprintable()
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    body = text.split("\n---\n", 1)[1]
    tokens = parser.enable("table").parse(body)
    kinds = {t.type for t in tokens} | {c.type for t in tokens for c in t.children or ()}
    assert not kinds & {"html_inline", "html_block", "image"}, body
    links = [c.attrs["href"] for t in tokens for c in t.children or () if c.type == "link_open"]
    assert all(link.startswith(("https://arxiv.org/", "https://doi.org/")) for link in links)
    assert sum(t.type == "heading_open" and t.tag == "h1" for t in tokens) == 1


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("place", PLACES)
def test_names_do_nothing(tmp_path, monkeypatch, place, kind):
    """Through plan, mix, sweep, extract, verify, check and recipe, as text and as JSON."""
    missing = {"outcome": "missing", "why": TEXTS[kind]}  # a child would import transformers
    for name in ("architecture", "checker", "template"):
        monkeypatch.setattr(f"paramdelta.checks.{name}.run_child", lambda *_: missing)
    base, post, new = place(tmp_path, TEXTS[kind])
    name = f"out{TEXTS[kind].replace('/', '')}" if place is folder else "out"
    out = tmp_path / os.fsdecode(name.encode("utf-8", "replace"))
    options = ["--post", str(post), "--base", str(base), "--new-base", str(new)]
    both = ["--post", str(post), "--base", str(base)]
    recipe = tmp_path / "recipe.yaml"
    commands = [
        ["plan", *options, "--tensors"],
        ["plan", *options, "--explain", "*"],
        ["mix", *options, "--out", str(out)],
        ["verify", str(out), "--full"],
        ["check", str(post)],
    ]
    if place in (tensor, folder):
        commands += [
            ["sweep", *options, "--scale", "0.5,1", "--out", str(out) + "s"],
            ["extract", *both, "--out", str(out) + "d"],
            ["verify", str(out) + "d"],
            ["extract", *both, "--out", str(out) + "l", "--as", "lora", "--rank", "2"],
            ["verify", str(out) + "l"],
        ]
    recipe.write_text(json.dumps({"new_base": str(new), "deltas": [{"post": str(post)}]}))
    commands += [["recipe", "show", str(recipe)], ["plan", str(recipe)]]
    mixed = False
    for command in commands:
        result = run(*command)
        check_output(result)
        if command[0] in ("plan", "check") or result.returncode:
            check_output(run(*command, "--json"))
        mixed |= command[0] == "mix" and result.returncode == 0
    for written in (out, tmp_path / f"{out}d", tmp_path / f"{out}l"):
        check_card(written)
    if place in (tensor, card, folder) and kind != "surrogate":
        assert mixed


@pytest.mark.parametrize("kind", TEXTS)
def test_recipes_and_locks_do_nothing(tmp_path, lineage, kind):
    """Keys and values of recipes, mergekit configurations, and of every part of a lock."""
    text, recipe = TEXTS[kind], tmp_path / "recipe.yaml"
    plain = {"new_base": str(lineage.new), "deltas": [{"post": text, "base": text}]}
    documents = [
        plain, plain | {text: 1}, plain | {"scheme": text}, plain | {"dtype": text}, {text: text},
        plain | {"deltas": [{"post": str(lineage.post), "base": str(lineage.base),
                             "scale": [{"match": text, "scale": 0.5}, 1.0]}]},
        plain | {"deltas": [{"post": str(lineage.post), "scale": text}]},
        {"merge_method": text}, [text],
        {"merge_method": "ties", "base_model": text, "models": [{"model": text}], text: text},
        {"merge_method": "ties", "base_model": text,
         "models": [{"model": "a/b", "parameters": {"weight": [1, 2], text: 1}}]},
    ]  # fmt: skip
    for document in documents:
        recipe.write_text(json.dumps(document))
        for command in (["plan"], ["recipe", "show"], ["recipe", "import"]):
            check_output(run(*command, str(recipe)))
        check_output(run("plan", str(recipe), "--json"))
    out = tmp_path / "out"
    assert run("mix", *lineage.options, "--out", str(out)).returncode == 0
    lock = out / "paramdelta.lock.json"
    original = json.loads(lock.read_text())

    def changed(value, path):
        if isinstance(value, dict):
            for key in value:
                yield from changed(value[key], [*path, key])
        elif isinstance(value, list):
            for number, each in enumerate(value):
                yield from changed(each, [*path, number])
        else:
            yield path

    for path in list(changed(original, []))[::5]:
        broken = json.loads(json.dumps(original))
        inner = broken
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = text
        lock.write_text(json.dumps(broken))
        check_output(run("verify", str(out)))


@pytest.mark.skipif(sys.platform != "linux", reason="a name that is not UTF-8")
def test_a_process_prints_no_raw_bytes(tmp_path):
    """The same with the real streams of a process."""
    name = os.fsdecode(NASTY.replace("/", "").encode() + b"\xff\n")
    place = save(tmp_path / name, llama(), config_json=CONFIG)
    result = process("check", str(place))
    check_output(result)
    assert "\\udcff\\n" in result.stdout
