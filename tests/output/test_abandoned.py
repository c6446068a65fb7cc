"""What unfinished runs left is found and removed, and nothing else is."""

import os

import pytest

from paramdelta import Interrupted, mix
from paramdelta.errors import BusyError
from paramdelta.output.abandoned import find_abandoned
from paramdelta.output.guard import Guard
from tests.cli.test_app import run


def stopped(lineage, out):
    """An output whose run was stopped."""

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        mix(lineage.recipe(), out, progress=stop)


def test_an_unfinished_output(lineage, tmp_path):
    """It is listed, removed on request, and the folder is as before."""
    before = sorted(os.listdir(tmp_path))
    stopped(lineage, tmp_path / "out")
    listed = run("clean", str(tmp_path))
    assert f"{tmp_path / 'out'}: unfinished" in listed.stdout
    assert sorted(os.listdir(tmp_path)) != before
    assert "removed" in run("clean", str(tmp_path), "--remove").stdout
    assert sorted(os.listdir(tmp_path)) == before
    assert run("clean", str(tmp_path)).stdout == "no unfinished outputs\n"


def test_an_output_in_use(lineage, tmp_path):
    """A run holds the lock: neither listed as free nor removed."""
    stopped(lineage, tmp_path / "out")
    guard = Guard(tmp_path / ".out.paramdelta-lock", "out")
    (found,) = find_abandoned(tmp_path)
    assert found.busy
    assert "in use" in run("clean", str(tmp_path), "--remove").stdout
    with pytest.raises(BusyError):
        found.remove()
    assert found.folder.is_dir()
    guard.release()


def test_links_and_others_are_left(lineage, tmp_path):
    """A link with the name of an unfinished output is not followed; finished outputs stay."""
    mix(lineage.recipe(), tmp_path / "done")
    (tmp_path / ".evil.paramdelta-partial").symlink_to(tmp_path / "done")
    (tmp_path / ".paramdelta-partial").mkdir()
    assert list(find_abandoned(tmp_path)) == []
    run("clean", str(tmp_path), "--remove")
    assert (tmp_path / "done" / "model.safetensors").is_file()


def test_a_card_is_written_again(lineage, tmp_path):
    """With a license that a source states now; another folder is refused."""
    out = mix(lineage.recipe(), tmp_path / "out").folder
    before = (out / "README.md").read_text()
    for folder in (lineage.base, lineage.post, lineage.new):
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert run("card", str(out)).returncode == 0
    assert (out / "README.md").read_text() == before.replace(
        "- paramdelta\n---", "- paramdelta\nlicense: mit\n---"
    ).replace("not stated", "mit")
    assert run("verify", str(out)).returncode == 0
    assert run("card", str(lineage.base)).returncode == 3
