"""Children cost seconds: unless a test asks for the real thing, there is no library that builds
models, and templates are rendered here.
"""

import json

import pytest

from paramdelta.checks import architecture, child, template
from paramdelta.checks.process import MISSING


@pytest.fixture(autouse=True)
def _without_children(request, monkeypatch):
    if "hf" in request.keywords:
        return
    answer = {"outcome": MISSING, "why": "no library in this test"}
    monkeypatch.setattr(architecture, "run_child", lambda *_: answer)
    if "children" in request.fixturenames:
        return
    monkeypatch.setattr(child, "_limit", lambda *_: None)
    monkeypatch.setattr(
        template,
        "run_child",
        lambda task, asked, _: child._answer(child._TASKS[task], json.loads(json.dumps(asked))),
    )


@pytest.fixture
def children():
    """Ask for templates to be rendered in real child processes."""
