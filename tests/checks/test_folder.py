"""Foreign folders: what is opened, and what is only reported."""

import os
import re
import stat

import pytest

from paramdelta.checks import check
from paramdelta.checks.folder import MAX_TEXT, is_inside, open_folder
from paramdelta.errors import CheckpointError, StorageError
from paramdelta.planning.findings import Findings
from tests.checks.folders import put, right


def found(folder):
    """What is refused, with its place."""
    return [(f.code, f.where) for f in check(folder).findings]


def test_lists_files_of_subfolders(tmp_path):
    """Names are relative, with slashes; hidden files and folders are left out."""
    for name in ("a.json", "one/b.json", "one/two/c.json", ".git/config", ".hidden"):
        put(tmp_path, name, "12")
    folder = open_folder(tmp_path, Findings())
    assert folder.sizes == {"a.json": 2, "one/b.json": 2, "one/two/c.json": 2}
    inner = folder.sub("one")
    assert inner.sizes == {"b.json": 2, "two/c.json": 2}
    assert inner.direct == ["b.json"]
    assert inner.place("b.json") == "one/b.json"
    assert inner.read("two/c.json", 1) == b"2"
    assert folder.has_folder("one/two")
    assert not folder.has_folder("on")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifo_does_not_hang(tmp_path):
    """A FIFO instead of the weights is reported; one that comes after the listing is not read."""
    right(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    folder = open_folder(right(tmp_path / "later"), Findings())
    os.mkfifo(tmp_path / "model.safetensors")
    assert ("not-a-file", "model.safetensors") in found(tmp_path)
    (tmp_path / "later" / "config.json").unlink()
    os.mkfifo(tmp_path / "later" / "config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        folder.read("config.json")


def test_links_that_leave_the_folder(tmp_path):
    """They are not followed, whatever lies there; links inside are."""
    secret = put(tmp_path, "secret.json", '{"eos_token_id": 7}')
    folder = right(tmp_path / "model")
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to(secret)
    (folder / "inside.json").symlink_to(folder / "config.json")
    (folder / "nowhere.json").symlink_to(folder / "absent")
    (folder / "up").symlink_to(tmp_path)
    names = {where for code, where in found(folder) if code == "link-outside"}
    assert names == {"generation_config.json", "nowhere.json", "up"}


def test_snapshot_of_the_hub_cache(tmp_path):
    """Its links lead to the blobs of the same repository, and are followed."""
    folder = right(tmp_path / "models--a--b" / "snapshots" / "0123")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert found(folder) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe{}", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON|nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[]", "not a JSON object"),
        (b" " * (MAX_TEXT + 1), "more than"),
    ],
)
def test_config_that_cannot_be_used(tmp_path, content, words):
    """It is refused with the reason, and nothing else breaks."""
    put(right(tmp_path), "config.json", content)
    findings = [f for f in check(tmp_path).findings if f.code == "file-invalid"]
    assert [f.where for f in findings] == ["config.json"]
    assert re.search(words, findings[0].what)


def test_pointers_instead_of_small_files(tmp_path):
    """A tokenizer that was not downloaded."""
    put(right(tmp_path), "tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid x\n")
    assert ("lfs-pointer", "tokenizer.json") in found(tmp_path)


def test_unreadable_folder(tmp_path):
    """What the system says comes out as an error with a place."""
    folder = open_folder(right(tmp_path), Findings())
    (tmp_path / "config.json").unlink()
    with pytest.raises(StorageError, match="cannot read"):
        folder.read("config.json")
    put(tmp_path, "config.json", "{}")
    with pytest.raises(CheckpointError, match="ends too early"):
        folder.read("config.json")
    assert stat.S_ISDIR(tmp_path.stat().st_mode)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a.json", True), ("a/b.json", True), ("..a/b", True), ("", False), ("../a", False),
        ("a/../../b", False), ("/etc/passwd", False), ("C:\\x", False), ("a\\..\\..\\b", False),
        ("\\\\host\\share", False), ("s3://bucket", False),
    ],
)  # fmt: skip
def test_is_inside(name, inside):
    """Names that one file gives for another."""
    assert is_inside(name) is inside


def test_too_many_files(tmp_path, monkeypatch):
    """The listing ends, and that is said."""
    monkeypatch.setattr("paramdelta.checks.folder.MAX_FILES", 3)
    assert ("too-many-files", ".") in found(right(tmp_path))
