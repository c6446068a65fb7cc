"""Paths that no file can have, that lead nowhere, or must not be opened: an error each time."""

import errno
import json
import os
import subprocess
import sys

import pytest

from paramdelta.storage.local import File
from tests.checkpoints import llama, save
from tests.cli.test_app import run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, FIFOs and permissions of POSIX")


def _loop(folder):
    (folder / "loop").symlink_to("loop")
    return str(folder / "loop")


def _dangling(folder):
    (folder / "dangling").symlink_to("absent")
    return str(folder / "dangling" / "x")


def _fifo(folder):
    os.mkfifo(folder / "fifo.safetensors")
    return str(folder / "fifo.safetensors")


def _only_fifo(folder):
    (folder / "only").mkdir()
    os.mkfifo(folder / "only" / "model.safetensors")
    return str(folder / "only")


def _below_file(folder):
    (folder / "file").write_text("x")
    return str(folder / "file" / "x")


PATHS = {
    "long name": lambda folder: str(folder / ("x" * 300)),
    "long path": lambda folder: str(folder / ("x/" * 3000)),
    "not UTF-8": lambda folder: str(folder / os.fsdecode(b"absent\xff") / "x"),
    "half a character": lambda folder: str(folder / "absent\ud800"),
    "null": lambda folder: str(folder / "a\0b"),
    "loop": _loop,
    "inside a loop": lambda folder: _loop(folder) + "/x",
    "dangling": _dangling,
    "FIFO": _fifo,
    "only a FIFO": _only_fifo,
    "device": lambda folder: "/dev/null",
    "below a file": _below_file,
    "empty": lambda folder: "",
    "no user": lambda folder: "~nosuchuser/x",
}
# "%" stands for the odd path.
COMMANDS = {
    "post": "plan --post % --base B --new-base N",
    "base": "plan --post P --base % --new-base N",
    "new base": "plan --post P --base B --new-base %",
    "delta": "plan --delta % --new-base N",
    "recipe": "plan %",
    "recipe show": "recipe show %",
    "recipe import": "recipe import %",
    "mix": "mix --post P --base B --new-base N --out %",
    "plan out": "plan --post P --base B --new-base N --out %",
    "sweep": "sweep --post P --base B --new-base N --scale 1 --out %",
    "extract": "extract --post P --base B --out %",
    "extract post": "extract --post % --base B --out O",
    "verify": "verify %",
    "check": "check %",
}
# An output may be where there is no folder yet, and a sweep's folders beside other things.
_MAY_WORK = {
    (path, command)
    for path in ("not UTF-8", "no user", "dangling")
    for command in ("mix", "plan out", "sweep", "extract")
} | {("only a FIFO", "sweep"), ("empty", "sweep")}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("path", PATHS)
def test_an_odd_path_is_an_error(lineage, tmp_path, monkeypatch, path, command):
    """One clear message, an exit code other than 0, no traceback, no wait."""
    monkeypatch.chdir(tmp_path)
    odd = PATHS[path](tmp_path)
    known = {"P": str(lineage.post), "B": str(lineage.base), "N": str(lineage.new), "O": "o"}
    words = COMMANDS[command].split()
    result = run(*(odd if word == "%" else known.get(word, word) for word in words))
    assert "Traceback" not in result.stderr, result.stderr
    if (path, command) not in _MAY_WORK:
        assert result.returncode in (2, 3, 4), result.stdout
        if not (command == "check" and result.returncode == 3):
            assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("path", PATHS)
def test_an_odd_path_in_a_recipe_and_a_lock(lineage, tmp_path, path):
    """The same paths where a file gives them."""
    odd, recipe = PATHS[path](tmp_path), tmp_path / "recipe.yaml"
    for place in ("new_base", "post", "base"):
        plain = {"new_base": str(lineage.new), "post": str(lineage.post), "base": str(lineage.base)}
        plain[place] = odd
        new = plain.pop("new_base")
        recipe.write_text(json.dumps({"new_base": new, "deltas": [plain]}))
        result = run("plan", str(recipe))
        assert "Traceback" not in result.stderr, result.stderr
        assert result.returncode in (2, 3, 4)
    out = tmp_path / "out"
    assert run("mix", *lineage.options, "--out", str(out)).returncode == 0
    lock = json.loads((out / "paramdelta.lock.json").read_text())
    lock["recipe"]["new_base"] = odd
    (out / "paramdelta.lock.json").write_text(json.dumps(lock))
    result = run("verify", str(out))
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode in (2, 3, 4)


def test_odd_files_inside_of_a_checkpoint(lineage, tmp_path):
    """Loops, dangling links, FIFOs and folders beside the weights change nothing."""
    plain = run("plan", *lineage.options).stdout
    for folder in (lineage.post, lineage.new):
        (folder / "loop").symlink_to("loop")
        (folder / "loop.json").symlink_to("loop.json")
        (folder / "dangling.json").symlink_to("absent")
        os.mkfifo(folder / "fifo.json")
        (folder / os.fsdecode(b"\xff.json")).write_text("{}")
    result = run("plan", *lineage.options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == plain.splitlines()[0]
    assert run("mix", *lineage.options, "--out", str(tmp_path / "out")).returncode == 0


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_fifo_in_the_place_of_a_file(lineage, name):
    """It is as if the file were absent; nobody waits for a writer."""
    (lineage.base / name).unlink(missing_ok=True)
    os.mkfifo(lineage.base / name)
    for command in (["plan", *lineage.options], ["check", str(lineage.base), "--headers"]):
        result = run(*command)
        assert "Traceback" not in result.stderr, result.stderr
        assert result.returncode in (0, 3)


AS_NOBODY = """
import contextlib, io, os
from paramdelta.cli.app import main
if os.geteuid() == 0:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main()  # imports what another user may not be able to read
    import paramdelta.storage.hub  # asked about folders that this user cannot see
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
main()
"""


def _as_nobody(*arguments):
    """Run `paramdelta` as a user to whom permissions apply."""
    command = [sys.executable, "-c", AS_NOBODY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace")


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_missing_permissions(tmp_path, mode):
    """A folder that cannot be listed, or whose files cannot be reached: exit code 3 or 4."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)  # pytest keeps them private
    folder = save(tmp_path / "model", llama())  # with a config, `check` would import transformers
    folder.chmod(mode)
    same = ["--post", str(folder), "--base", str(folder), "--new-base", str(folder)]
    try:
        for command in (
            ["check", str(folder), "--headers"],
            ["plan", *same],
            ["verify", str(folder)],
        ):
            result = _as_nobody(*command)
            assert "Traceback" not in result.stderr, result.stderr
            assert result.returncode in (2, 3, 4), (command, result.stdout)
            assert "error: " in result.stderr or command[0] == "check"
    finally:
        folder.chmod(0o755)


def test_a_file_system_without_advice(lineage, tmp_path, monkeypatch):
    """Some answer EINVAL to fadvise: the page cache is then left as it is."""

    def refuse(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuse, raising=False)
    monkeypatch.setattr(File, "_has_page", lambda *_: False)  # as if nothing were cached
    assert run("mix", *lineage.options, "--out", str(tmp_path / "out")).returncode == 0
    assert run("verify", str(tmp_path / "out"), "--full").returncode == 0


LIMITED = """
import resource, sys
from paramdelta.storage import local
from paramdelta.output import journal
limit = int(sys.argv.pop(1))
real = journal.Journal._write
def write(self, text):
    if "leaves" in text or "done" in text:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    real(self, text)
journal.Journal._write = write
from paramdelta.cli.app import main
main()
"""


def test_a_journal_that_may_not_grow(lineage, tmp_path):
    """EFBIG is an error that says which file, and the same command finishes later."""
    options = ["mix", *lineage.options, "--out", str(tmp_path / "out")]
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, "100", *options], capture_output=True, text=True
    )
    assert result.returncode == 4, result.stderr
    assert "Traceback" not in result.stderr
    assert "paramdelta-journal" in result.stderr
    assert "ulimit -f" in result.stderr
    assert run(*options).returncode == 0
    assert run("verify", str(tmp_path / "out"), "--full").returncode == 0
