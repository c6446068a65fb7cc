"""Child processes: what they may import, how long they live, what comes back."""

import os
import sys

import pytest

from paramdelta.checks import process
from paramdelta.checks.process import run_child

SAID = ["a", "b", "c", "d"]
REQUEST = {"template": "{{ messages[0].content }}", "roles": {}, "conversation": SAID}


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch):
    """No answer is known from another test."""
    monkeypatch.setattr(process, "_answers", {})


def test_answer_comes_back():
    """A task's answer, with its outcome."""
    assert run_child("render", REQUEST, 20) == {"outcome": "done", "text": "a"}


def test_time_limit():
    """A child that is not done is ended."""
    answer = run_child("render", REQUEST, 0.001)
    assert answer["outcome"] == "failed"
    assert "not done" in answer["why"]


def test_nothing_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    """A folder that is checked may hold json.py, and may be where the user stands."""
    for name in ("json.py", "jinja2.py", "torch.py", "sitecustomize.py"):
        (tmp_path / name).write_text("raise SystemExit('code of the folder was run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    assert run_child("render", REQUEST, 20)["outcome"] == "done"


def test_environment_is_offline(tmp_path, monkeypatch):
    """No Hub, no token, no GPU; the packages of this process."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["relative", str(tmp_path), ""]))
    environment = process._environment(tmp_path)
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    paths = environment["PYTHONPATH"].split(os.pathsep)
    assert paths[1:] == [str(tmp_path)]


def test_child_that_dies(monkeypatch):
    """Without an answer its last words are the reason."""
    answer = run_child("no such task", REQUEST, 20)
    assert answer["outcome"] == "failed"
    assert "KeyError" in answer["why"]


def test_a_question_is_asked_once(monkeypatch):
    """The outputs of a sweep are alike; failures are tried again, and few answers are kept."""
    first = run_child("render", REQUEST, 20)
    monkeypatch.setattr(process, "_run", lambda *_: {"outcome": "failed", "why": "asked"})
    assert run_child("render", REQUEST, 20) == first
    other = REQUEST | {"template": "{{ messages[1].content }}"}
    assert run_child("render", other, 20)["why"] == "asked"
    monkeypatch.setattr(process, "_run", lambda *_: {"outcome": "done", "text": "again"})
    assert run_child("render", other, 20)["text"] == "again"
    for number in range(2 * process._KEPT):
        run_child("build", {"number": number}, 20)
    assert len(process._answers) == process._KEPT
