"""Where outputs go: what is refused beforehand, and what a run never removes."""

import errno
import json
import os
import shutil

import pytest

import paramdelta
from paramdelta.errors import BusyError, MisfitError, StorageError, UsageError
from paramdelta.output.folder import FolderSink
from paramdelta.output.guard import Guard
from paramdelta.output.lock import LOCK
from paramdelta.output.place import find_place
from paramdelta.output.rename import exchange, rename_new


@pytest.mark.parametrize("out", ["", " ", "s3://bucket/x", "gs://a", "hf://org/name", "s3:/x/y"])
def test_only_paths_of_this_machine(out, tmp_path, monkeypatch):
    """A URL never becomes a folder with a colon in its name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="folder on this machine"):
        find_place(out, [], False, LOCK)
    assert list(tmp_path.iterdir()) == []


def test_outputs_on_inputs_are_refused(lineage, tmp_path):
    """On, inside and around an input; and where an input's shards are links into an old output."""
    for out in (lineage.base, lineage.base / "sub", tmp_path):
        with pytest.raises(UsageError, match="lies on an input"):
            paramdelta.mix(lineage.recipe(), out, overwrite=True)
    out = paramdelta.mix(lineage.recipe(), tmp_path / "out").folder
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in out.glob("*.safetensors*"):
        (linked / path.name).symlink_to(path)
    if (index := linked / "model.safetensors.index.json").exists():
        index.unlink()
        shutil.copy(out / index.name, index)
    recipe = paramdelta.Recipe(linked, (paramdelta.Delta(lineage.post, lineage.base),))
    with pytest.raises(UsageError, match="lies on an input"):
        paramdelta.mix(recipe, out, overwrite=True)


def test_an_unfinished_output_is_no_input(lineage, tmp_path):
    """The hidden folder of an output cannot be its source."""
    hidden = tmp_path / ".out.paramdelta-partial"
    lineage.post.rename(hidden)
    recipe = paramdelta.Recipe(lineage.new, (paramdelta.Delta(hidden, lineage.base),))
    with pytest.raises(UsageError, match="lies on an input"):
        paramdelta.mix(recipe, tmp_path / "out")
    assert (hidden / "config.json").exists()


def test_overwriting_needs_our_own_files_only(lineage, tmp_path):
    """A user's file in an old output stops --overwrite; without it the old output is replaced."""
    out = paramdelta.mix(lineage.recipe(), tmp_path / "out").folder
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="did not write") as caught:
        paramdelta.mix(lineage.recipe(0.5), out, overwrite=True)
    assert caught.value.got == "notes.txt"
    (out / "notes.txt").unlink()
    before = json.loads((out / LOCK).read_text())
    paramdelta.mix(lineage.recipe(0.5), out, overwrite=True)
    assert json.loads((out / LOCK).read_text()) != before
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_meanwhile_is_never_removed(lineage, tmp_path, monkeypatch, overwrite):
    """A folder that appears at the output during the run stays, and the work is kept."""
    out = tmp_path / "out"
    finish = FolderSink.finish

    def intruding(self):
        out.mkdir()
        (out / "thesis.txt").write_text("ten years")
        finish(self)

    monkeypatch.setattr(FolderSink, "finish", intruding)
    with pytest.raises(MisfitError, match="something else is at the output"):
        paramdelta.mix(lineage.recipe(), out, overwrite=overwrite)
    assert (out / "thesis.txt").read_text() == "ten years"
    monkeypatch.setattr(FolderSink, "finish", finish)
    (out / "thesis.txt").rename(tmp_path / "thesis.txt")
    result = paramdelta.mix(lineage.recipe(), out)
    assert result.resumed == result.layout.nbytes


def test_a_users_file_in_a_replaced_output_is_kept(lineage, tmp_path, monkeypatch):
    """A file that comes into the old output during --overwrite stays, and its place is told."""
    out = paramdelta.mix(lineage.recipe(), tmp_path / "out").folder
    finish = FolderSink.finish

    def intruding(self):
        (out / "notes.txt").write_text("mine")
        finish(self)

    monkeypatch.setattr(FolderSink, "finish", intruding)
    (kept,) = paramdelta.mix(lineage.recipe(0.5), out, overwrite=True).kept
    assert kept.name == "out.kept-1"
    assert [path.name for path in kept.iterdir()] == ["notes.txt"]
    assert (kept / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
def test_the_current_folder_can_be_the_output(lineage, tmp_path, monkeypatch):
    """An empty folder that cannot be replaced is filled: the current one, a mount point."""
    inside = tmp_path / "here"
    inside.mkdir()
    monkeypatch.chdir(inside)
    before = inside.stat().st_ino
    out = paramdelta.mix(lineage.recipe(), ".").folder
    assert inside.stat().st_ino == before
    assert sorted(p.name for p in inside.iterdir())[0] == "README.md"
    assert paramdelta.plan(paramdelta.Recipe(out, lineage.recipe().deltas)).tensors


def test_a_guard_keeps_others_out(tmp_path):
    """A second guard is refused while the first is held; afterwards nothing is left."""
    path = tmp_path / ".out.paramdelta-lock"
    guard = Guard(path, "out")
    with pytest.raises(BusyError, match="another run"):
        Guard(path, "out")
    guard.release()
    guard.release()
    assert not path.exists()
    Guard(path, "out").release()


@pytest.mark.parametrize("native", [True, False])
def test_renames_replace_nothing_by_accident(tmp_path, monkeypatch, native):
    """With the system's own call and without it."""
    if not native:
        monkeypatch.setattr("paramdelta.output.rename._renameat2", lambda *_: False)
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    with pytest.raises(FileExistsError):
        rename_new(one, other)
    exchange(one, other)
    assert [(f / "name").read_text() for f in (one, other)] == ["other", "one"]
    rename_new(one, tmp_path / "third")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "third"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
def test_a_move_that_fails_is_undone(lineage, tmp_path, monkeypatch):
    """Files that are moved one by one go back if one cannot be moved; the same command ends it."""
    inside = tmp_path / "here"
    inside.mkdir()
    monkeypatch.chdir(inside)
    moved = []

    def failing(source, target):
        moved.append(target)
        if len(moved) == 3:
            raise OSError(errno.EIO, "I/O error")
        rename_new(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("paramdelta.output.place.rename_new", failing)
        with pytest.raises(StorageError, match="put in place"):
            paramdelta.mix(lineage.recipe(), ".")
    assert len(moved) > 3
    assert all(path.name.startswith(".") for path in inside.iterdir())
    result = paramdelta.mix(lineage.recipe(), ".")
    assert result.resumed == result.layout.nbytes
    assert not list(inside.glob(".*"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_move_that_was_killed_is_finished(lineage, tmp_path, monkeypatch, count):
    """A run that was killed between two moves leaves nothing that stops the next one."""
    inside = tmp_path / "here"
    inside.mkdir()
    monkeypatch.chdir(inside)
    moved = []

    def killed(source, target):
        if len(moved) == count:
            raise SystemExit
        moved.append(target)
        rename_new(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("paramdelta.output.place.rename_new", killed)
        with pytest.raises(SystemExit):
            paramdelta.mix(lineage.recipe(), ".")
    assert len([path for path in inside.iterdir() if path.name[0] != "."]) == count
    (inside / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        paramdelta.mix(lineage.recipe(), ".")
    (inside / "thesis.txt").unlink()
    result = paramdelta.mix(lineage.recipe(), ".")
    assert result.resumed == result.layout.nbytes
    assert not list(inside.glob(".*"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
def test_what_cannot_be_replaced_is_refused_at_the_start(lineage, tmp_path, monkeypatch):
    """An old output in the current folder: before any work."""
    out = paramdelta.mix(lineage.recipe(), tmp_path / "out").folder
    monkeypatch.chdir(out)
    with pytest.raises(UsageError, match="in one step"):
        paramdelta.mix(lineage.recipe(0.5), ".", overwrite=True)
    assert not list(out.glob(".*"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
@pytest.mark.parametrize("name", ["model.safetensors.part", "model.safetensors", "config.json"])
@pytest.mark.parametrize("dangling", [False, True])
def test_nothing_is_written_through_planted_links(lineage, tmp_path, name, dangling):
    """A hidden folder that came from elsewhere, with links to the user's files."""
    hidden = tmp_path / ".out.paramdelta-partial"
    hidden.mkdir()
    victim = tmp_path / "victim"
    if not dangling:
        victim.write_bytes(bytes(paramdelta.plan(lineage.recipe()).bytes_to_write))
    before = victim.read_bytes() if not dangling else None
    (hidden / name).symlink_to(victim)
    with pytest.raises(MisfitError, match="no run of paramdelta wrote") as caught:
        paramdelta.mix(lineage.recipe(), tmp_path / "out")
    assert caught.value.got == name
    assert victim.exists() != dangling
    assert dangling or victim.read_bytes() == before
    paramdelta.mix(lineage.recipe(), tmp_path / "out", fresh=True)
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_symlink()]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
def test_a_planted_link_to_a_folder_is_not_followed(lineage, tmp_path):
    """What a forged journal names below it is not removed."""
    hidden = tmp_path / ".out.paramdelta-partial"
    hidden.mkdir()
    (hidden / "sub").symlink_to(lineage.post)
    with pytest.raises(MisfitError, match="no run of paramdelta wrote"):
        paramdelta.mix(lineage.recipe(), tmp_path / "out")
    assert (lineage.post / "config.json").exists()


def test_a_users_empty_folder_in_an_old_output_is_kept(lineage, tmp_path):
    """Only folders of files that paramdelta wrote go with them."""
    out = paramdelta.mix(lineage.recipe(), tmp_path / "out").folder
    (out / "notes").mkdir()
    (kept,) = paramdelta.mix(lineage.recipe(0.5), out, overwrite=True).kept
    assert [path.name for path in kept.iterdir()] == ["notes"]
