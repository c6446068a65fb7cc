"""Codes of findings that can be accepted."""

import ast
from pathlib import Path

import paramdelta
from paramdelta.planning.findings import ALLOWABLE


def allowed_codes():
    """The code of every finding in src/ that says what happens if it is allowed."""
    found = set()
    for path in Path(paramdelta.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(call, ast.Call) and any(k.arg == "allowed" for k in call.keywords)
            if named and len(call.args) > 1:
                names = [n.value for n in ast.walk(call.args[1]) if isinstance(n, ast.Constant)]
                found |= {name for name in names if isinstance(name, str) and "-" in name}
    return found


def test_the_list_is_complete():
    """So that `Recipe.allow` refuses exactly the codes that mean nothing."""
    assert allowed_codes() == ALLOWABLE | {"counter-changed"}  # which is a warning anyway
