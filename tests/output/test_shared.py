"""Outputs that several machines make in a folder that they share."""

import os
import threading

import pytest

import paramdelta
from paramdelta import MisfitError, UsageError
from paramdelta.output import lock, shared
from paramdelta.output.shared import SharedFolder
from tests.buckets import contents
from tests.unfinished import interrupted

SIZE = "1MB"


def part(lineage, out, text, **options):
    """Make a part."""
    return paramdelta.mix_part(lineage.recipe(), out, text, shard_size=SIZE, **options)


def finish(lineage, out, **options):
    """Finish."""
    return paramdelta.finish_mix(lineage.recipe(), out, shard_size=SIZE, **options)


@pytest.fixture
def expected(wide, tmp_path):
    """The files of one run."""
    return contents(paramdelta.mix(wide.recipe(), tmp_path / "one" / "out", shard_size=SIZE).folder)


def test_parts_at_once_and_twice(wide, expected, tmp_path):
    """Each part runs twice at the same time; the bytes are those of one run."""
    out = tmp_path / "out"
    runs = [
        threading.Thread(target=part, args=(wide, out, f"{n}/2"), daemon=True) for n in (1, 2, 1, 2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert not out.exists()
    finish(wide, out)
    assert finish(wide, out).moved == 0
    assert contents(out) == expected
    assert sorted(os.listdir(tmp_path)) == ["one", "out"]
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o666 & ~_umask()}


def test_without_links(wide, expected, tmp_path, monkeypatch):
    """A file system without hard links does as well."""

    def none(*_):
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "link", none)
    for text in ("1/2", "2/2"):
        part(wide, tmp_path / "out", text)
    finish(wide, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_shards_that_are_made_on_another_disk(wide, expected, tmp_path, monkeypatch):
    """Where a rename does not reach, they are copied."""
    replace = shared.Path.replace

    def crossing(self, target):
        if self.name.endswith(".part"):
            raise OSError(18, "another device")
        return replace(self, target)

    monkeypatch.setattr(shared.Path, "replace", crossing)
    for text in ("1/2", "2/2"):
        part(wide, tmp_path / "out", text, staging=tmp_path / "fast")
    finish(wide, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_a_part_that_broke_off_is_repeated(wide, expected, tmp_path, monkeypatch):
    """What it left does no harm."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupted(patch, 3)
        with pytest.raises(paramdelta.Interrupted):
            part(wide, out, "1/1")
    with pytest.raises(MisfitError) as caught:
        finish(wide, out)
    assert caught.value.code == "shards-missing"
    assert not out.exists()
    part(wide, out, "1/1")
    finish(wide, out)
    assert contents(out) == expected


def test_other_recipes_and_versions_are_refused(wide, tmp_path, monkeypatch):
    """One output is made by one recipe, one version and of unchanged sources."""
    out = tmp_path / "out"
    part(wide, out, "1/2")
    with pytest.raises(MisfitError) as caught:
        paramdelta.mix_part(wide.recipe(0.5), out, "2/2", shard_size=SIZE)
    assert caught.value.code == "other-run-unfinished"
    with pytest.raises(MisfitError) as caught:
        paramdelta.mix_part(wide.recipe(), out, "2/2", shard_size="2MB")
    assert caught.value.code == "other-run-unfinished"
    with monkeypatch.context() as patch:
        patch.setattr(lock, "__version__", "99.0")
        with pytest.raises(MisfitError) as caught:
            part(wide, out, "2/2")
        assert caught.value.code == "other-run-unfinished"
    path = next(wide.post.glob("*.safetensors"))
    before = path.stat()
    try:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        with pytest.raises(MisfitError) as caught:
            part(wide, out, "2/2")
        assert caught.value.code == "source-changed"
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_finished_output_is_replaced_when_the_new_one_is_complete(wide, expected, tmp_path):
    """Until then the old one stays."""
    out = tmp_path / "out"
    paramdelta.mix(wide.recipe(0.5), out)
    before = contents(out)
    with pytest.raises(UsageError) as caught:
        part(wide, out, "1/1")
    assert caught.value.code == "output-exists"
    part(wide, out, "1/1", overwrite=True)
    assert contents(out) == before
    finish(wide, out, overwrite=True)
    assert contents(out) == expected


@pytest.mark.parametrize("change", ["missing", "short", "added", "link"])
def test_a_folder_that_was_changed_is_refused(wide, tmp_path, change):
    """The shards are those that were recorded, and nothing else is there."""
    out = tmp_path / "out"
    part(wide, out, "1/1")
    whole = tmp_path / ".out.paramdelta-parts" / "whole"
    shard = whole / "model-00001-of-00003.safetensors"
    if change == "missing":
        shard.unlink()
    elif change == "short":
        os.truncate(shard, 1000)
    elif change == "added":
        (whole / "pytorch_model.bin").write_bytes(b"x")
    else:
        shard.rename(tmp_path / "elsewhere")
        shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MisfitError):
        finish(wide, out)
    assert not out.exists()


def test_strict_is_for_all_parts(wide, expected, tmp_path):
    """Numbers that nobody looked at are not called finite."""
    out = tmp_path / "out"
    part(wide, out, "1/2", strict=True)
    part(wide, out, "2/2")
    with pytest.raises(MisfitError) as caught:
        finish(wide, out, strict=True)
    assert caught.value.code == "shards-not-examined"
    finish(wide, out)
    assert contents(out) == expected


def test_two_that_finish_at_once(wide, expected, tmp_path, monkeypatch):
    """The slower one finds the output of the faster one, and is content."""
    out = tmp_path / "out"
    part(wide, out, "1/1")
    publish = SharedFolder.publish

    def slower(self, files):
        monkeypatch.setattr(SharedFolder, "publish", publish)
        finish(wide, out)
        publish(self, files)

    monkeypatch.setattr(SharedFolder, "publish", slower)
    finish(wide, out)
    assert contents(out) == expected


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
