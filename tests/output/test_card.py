"""The card: what it takes from the cards of its sources, and that no source can break a run."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import paramdelta
from paramdelta.errors import StorageError
from paramdelta.output.card import model_card, origins_of, recipe_file
from tests import opening


def origin(folder):
    """What a card says about a checkpoint."""
    return origins_of([opening.checkpoint(folder, "post")])[0]


@pytest.mark.parametrize(
    ("card", "stated"),
    [
        ("---\nlicense: mit\n---\n# x", "mit"),
        ('---\r\n"license": mit\r\n--- \r\n', "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---", "mit, apache-2.0"),
        ("---\nlicense: other\nlicense_name: a|<b>\n---\n", r"a\|&lt;b&gt;"),
        ("---\n{license: mit}\n---\n", "mit"),
        ("---\nmodel-index:\n" + "- a: {b: 1}\n" * 30_000 + "license: mit\n---\n", "mit"),
        ("---\ndate: 2024-02-30\nlicense: mit\n---\n", "mit"),
        ("---\nx: !!python/name:os.abort\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: {a: 1}\n---\n", "not stated"),
        ("---\nlicense: 5\n---\n", "not stated"),
        ("---\nlicense: &a [*a]\n---\n", "not stated"),
        ("---\nlicense: " + "[" * 5000 + "\n---\n", "not stated"),
        ("---\nlicense: " + "9" * 5000 + "\n---\n", "not stated"),
        ("---\nlicense: '\\ud800'\n---\n", r"\\ud800"),
        ("---\nlicense: mit\n", "not stated"),
        ("---" + "\n" * 1_000_000, "not stated"),
        ("license: mit", "not stated"),
        ("", "not stated"),
    ],
)
def test_the_license_of_a_card(lineage, card, stated):
    """Read as the Hub reads it; whatever cannot be read counts as not stated."""
    (lineage.post / "README.md").write_text(card, newline="")
    assert origin(lineage.post).license == stated


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("MIT License\n\nCopyright", "see its LICENSE (MIT License)"),
        ("<script>x</script>", "see its LICENSE (&lt;script&gt;x&lt;/script&gt;)"),
        ("", "see its LICENSE"),
        ("x" * 5000, "see its LICENSE (" + "x" * 299 + "…)"),
    ],
)
def test_the_license_of_a_file(lineage, text, stated):
    """Its first line, as words."""
    (lineage.post / "LICENSE").write_text(text)
    assert origin(lineage.post).license == stated


def test_an_unreadable_file_is_not_a_failure(lineage, monkeypatch):
    """A license and a card that cannot be read count as empty."""
    (lineage.post / "LICENSE").write_text("MIT")
    (lineage.post / "README.md").write_text("---\nlicense: mit\n---\n")
    source = opening.checkpoint(lineage.post, "post")

    def broken(*_):
        raise StorageError("cannot read the file", code="io-failed")

    files = {"README.md": None, "LICENSE": None}
    fake = SimpleNamespace(
        role="post",
        location=source.location,
        folder=type("Files", (dict,), {"text": broken})(files),
    )
    assert origins_of([fake])[0].license == "see its LICENSE"


def test_metadata_is_words(lineage, tmp_path):
    """Values of the sources are plain texts in the metadata, and end neither it nor a line."""
    (lineage.new / "README.md").write_text(
        '---\nlicense: "a\\n---\\n# title"\nlanguage: [en, 1]\npipeline_tag: {a: b}\n---\n'
    )
    paramdelta.mix(lineage.recipe(), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert (metadata["license"], metadata["license_name"]) == (
        "other",
        "a-n-n-title-and-not-stated",
    )
    assert "language" not in metadata
    assert "pipeline_tag" not in metadata


def test_commands_of_odd_names(lineage, tmp_path):
    """The name of the output is one title."""
    paramdelta.mix(lineage.recipe(), tmp_path / "a b; [x](y) ```")
    text = (tmp_path / "a b; [x](y) ```" / "README.md").read_text()
    assert r"# a b; \[x\](y) \`\`\`" in text


@pytest.mark.parametrize("name", ["README.md", "LICENSE"])
@pytest.mark.parametrize("kind", ["mix", "extract", "adapter"])
def test_small_files_are_made_before_the_weights(lineage, tmp_path, monkeypatch, name, kind):
    """Files of strangers are read before the first weight is written, not after hours of work."""
    (lineage.post / name).write_text("---\nlicense: mit\n---\n")
    written, read = [], []
    real = paramdelta.storage.files.Files.text

    def text(self, wanted, *rest):
        if wanted == name:
            read.append(bool(written))
        return real(self, wanted, *rest)

    def write(self, data, offset):
        written.append(offset)
        return original(self, data, offset)

    original = paramdelta.storage.local.File.write
    monkeypatch.setattr("paramdelta.storage.files.Files.text", text)
    monkeypatch.setattr("paramdelta.storage.local.File.write", write)
    if kind == "mix":
        paramdelta.mix(lineage.recipe(), tmp_path / "out")
    elif kind == "extract":
        paramdelta.extract((str(lineage.post), str(lineage.base)), tmp_path / "out")
    else:
        pair = (str(lineage.post), str(lineage.base))
        paramdelta.extract_adapter(pair, tmp_path / "out", rank=2)
    assert written
    assert read
    assert not any(read)


def _stating(lineage, **licenses):
    for role, text in licenses.items():
        folder = getattr(lineage, role)
        (folder / "README.md").write_text(f"---\n{text}\n---\n")


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        (dict.fromkeys(("base", "post", "new"), "license: mit"), {"license": "mit"}),
        (
            {"base": "license: mit", "post": "license: apache-2.0", "new": "license: mit"},
            {"license": "other", "license_name": "mit-and-apache-2.0"},
        ),
        (
            {"new": "license: mit"},
            {"license": "other", "license_name": "mit-and-not-stated"},
        ),
        (
            dict.fromkeys(("base", "post", "new"), "license: other\nlicense_name: llama3"),
            {"license": "other", "license_name": "llama3"},
        ),
        ({}, {}),
    ],
)
def test_licenses_are_combined(lineage, tmp_path, licenses, expected):
    """One license if all sources have it; else "other" under a name that holds all."""
    _stating(lineage, **licenses)
    paramdelta.mix(lineage.recipe(), tmp_path / "out")
    metadata = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert {key: value for key, value in metadata.items() if "license" in key} == expected


def test_terms_travel_with_their_source(lineage, tmp_path):
    """Each text once: the new base's at the top, those of others in a folder for each."""
    (lineage.new / "LICENSE").write_text("new")
    (lineage.post / "LICENSE").write_text("post")
    (lineage.post / "USE_POLICY.md").write_text("policy")
    (lineage.base / "LICENSE").write_text("new")
    (lineage.base / "NOTICE").write_text("notice")
    out = paramdelta.mix(lineage.recipe(), tmp_path / "out").folder
    found = {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("[LNU][IOS][CTE]*")}
    assert found == {
        "LICENSE": "new",
        "USE_POLICY.md": "policy",
        "licenses/post/LICENSE": "post",
        "licenses/base/NOTICE": "notice",
    }
    card = (out / "README.md").read_text()
    assert "- `licenses/post/LICENSE` from post" in card
    paramdelta.verify(out)


def test_the_hub_accepts_the_card(lineage, tmp_path):
    """huggingface_hub's own classes read it; only ids of the Hub are base models; no paths."""
    hub = pytest.importorskip("huggingface_hub")
    _stating(lineage, new="license: mit\nlanguage: [en]\npipeline_tag: text-generation")
    out = paramdelta.mix(lineage.recipe(), tmp_path / "out").folder
    card = hub.ModelCard.load(out / "README.md")
    assert card.data.base_model is None
    assert (card.data.language, card.data.license) == (["en"], "other")
    assert str(tmp_path) not in card.content
    assert "pip install" not in card.content

    plan = paramdelta.plan(lineage.recipe())
    (post, base), new = plan.lineages[0], plan.new_base
    placed = replace(new.location, repo="org/new", revision="c" * 40)
    plan = replace(
        plan,
        new_base=replace(new, location=placed),
        lineages=((post, replace(base, location=placed)),),
    )
    card = hub.ModelCard(model_card(plan, tmp_path / "out"))
    assert (card.data.base_model, card.data.base_model_relation) == (["org/new"], "merge")
    assert f"org/new@{'c' * 40}" in recipe_file(plan, tmp_path / "out")


def test_the_recipe_is_shipped_and_mixes_as_it_is(lineage, tmp_path, monkeypatch):
    """From any folder, recipe.yaml and the lock give the same weights; no path is absolute."""
    out = paramdelta.mix(lineage.recipe(0.5, dtype="F32"), tmp_path / "a" / "out").folder
    assert str(tmp_path) not in (out / "recipe.yaml").read_text()
    plan = paramdelta.plan(lineage.recipe())
    assert "post: post\n" in recipe_file(plan, Path("s3://bucket/folder"))
    monkeypatch.chdir("/")
    for name in ("recipe.yaml", "paramdelta.lock.json"):
        again = paramdelta.mix(out / name, tmp_path / name).folder
        assert (again / "model.safetensors").read_bytes() == (
            out / "model.safetensors"
        ).read_bytes()
