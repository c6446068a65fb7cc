"""The card: what it takes from the cards of its sources, and that no source can break a run."""

from types import SimpleNamespace

import pytest
import yaml

import paramdelta
from paramdelta.errors import StorageError
from paramdelta.output.card import origins_of
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
    assert metadata["license"] == r"a\n---\n# title"
    assert "language" not in metadata
    assert "pipeline_tag" not in metadata


def test_commands_of_odd_names(lineage, tmp_path):
    """The name of the output is one word of a shell, and one title."""
    paramdelta.mix(lineage.recipe(), tmp_path / "a b; [x](y) ```")
    text = (tmp_path / "a b; [x](y) ```" / "README.md").read_text()
    assert "--out 'a b; [x](y) ```'" in text
    assert "\n````\npip install" in text
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
