"""What is printed: escaped as a whole, by one module, and lost without harm if nobody reads it."""

import ast
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paramdelta
from paramdelta.cli.show.events import emit
from paramdelta.cli.show.terminal import say
from tests.cli.test_app import process

PACKAGE = Path(paramdelta.__file__).parent
ANY = st.text(st.characters(codec=None), max_size=40)
PRINTS = {"print", "echo", "secho"}


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func
            yield (
                called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", ""),
                node,
            )


def test_one_module_prints():
    """No other module of the package calls `print`, `typer.echo` or writes to a standard stream."""
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for name, node in _calls(path)
        if name in PRINTS or (name in ("write", "writelines") and "std" in ast.unparse(node.func))
    }
    assert found == {"cli/show/terminal.py"}


@given(ANY, ANY)
def test_a_line_is_one_safe_line(text, head):
    """On a terminal, nothing of a text but escapes; colors are around it."""
    out = _Terminal()
    with redirect_stdout(out):
        say(text, head=head, color="red")
    line = out.getvalue()
    assert line.count("\n") == 1
    plain = line[:-1].replace("\x1b[31m", "", 1).replace("\x1b[0m", "", 1) if head else line[:-1]
    assert plain.replace("\x1b[31m", "").replace("\x1b[0m", "").isprintable()


def test_styles_and_streams():
    """Lines in order, a style for the head or for all, standard error on request."""
    out, err = _Terminal(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        say("a", "b")
        say()
        say(" [red]x", head="warning", color="yellow")
        say("title", bold=True)
        say("problem", err=True)
    assert out.getvalue() == "a\nb\n\n\x1b[33mwarning\x1b[0m [red]x\n\x1b[1mtitle\x1b[0m\n"
    assert err.getvalue() == "problem\n"


@given(st.dictionaries(ANY, ANY, max_size=3))
def test_an_event_comes_back(facts):
    """Whatever the values hold, an event is one line of ASCII that reads as it was."""
    import json

    out = io.StringIO()
    with redirect_stdout(out):
        emit("facts", values=facts)
    assert out.getvalue()[:-1].isascii()
    assert out.getvalue()[:-1].isprintable()
    assert json.loads(out.getvalue())["values"] == facts


def _command(*arguments):
    code = "from paramdelta.cli.app import main; main()"
    return [sys.executable, "-c", code, *arguments]


def test_a_closed_pipe_does_not_end_the_work(lineage, tmp_path):
    """`paramdelta mix … | head -0`: the output is written, the exit code is that of the work."""
    read, write = os.pipe()
    os.close(read)
    out = tmp_path / "out"
    ended = subprocess.run(
        _command("mix", *lineage.options, "--out", str(out)), stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (out / "model.safetensors").is_file()


def test_a_closed_pipe_keeps_the_exit_code(tmp_path):
    """A refusal is a refusal although nobody reads it."""
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        _command("plan", "--post", "/absent", "--base", "/a", "--new-base", "/a", "--json"),
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (2, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_an_error():
    """What was asked for cannot be printed: exit code 4, and one clear message."""
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            _command("--version"), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 4
    assert ended.stderr.startswith("error: cannot write to the standard output")
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor in a shell")
def test_no_standard_output_at_all(lineage, tmp_path):
    """Started with the stream closed, as some schedulers do: the work is done."""
    command = _command("mix", *lineage.options, "--out", str(tmp_path / "out"))
    ended = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_fault_of_paramdelta_is_shown_escaped(monkeypatch, as_json):
    """An exception that nothing expects: exit code 1, and no raw text of a stranger."""
    from tests.cli.test_app import run

    def broken(*_):
        raise KeyError("\x1b[2J\u202e")

    monkeypatch.setattr("paramdelta.recipe.read_recipe", broken)
    found = run("recipe", "show", "x.yaml", *(["--json"] if as_json else []))
    assert found.returncode == 1
    assert "please report it" in found.stderr
    said = (found.stdout + found.stderr).replace("\n", "")
    assert said.isprintable()
    assert ('"internal-error"' in found.stdout) == as_json


def test_a_mistake_in_the_command_line_is_escaped():
    """Arguments that a shell made of file names are shown, and do nothing."""
    found = process("check", "a", "b\x1b[31m\nc")
    assert found.returncode == 2
    assert "(b\\x1b[31m\\nc)" in found.stderr.replace("\\x0a", "\\n")
