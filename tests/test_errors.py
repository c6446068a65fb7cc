"""Errors: codes, texts without options of the command line, lines that are safe to print."""

import ast
import copy
import pickle
import re
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import errors
from paramdelta.errors import CheckpointError, MisfitError, ParamDeltaError, UsageError, parameter

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "paramdelta"
PAGE = runpy.run_path(str(ROOT / "docs" / "errors.py"))
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
ANY = st.text(st.characters(codec=None), max_size=20)


def test_the_page_is_up_to_date():
    """docs/errors.md is what `make docs` would write."""
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == PAGE["render"]()


def test_every_error_has_a_code():
    """Whatever makes an error gives it a code in words, or hands on one that it was given."""
    for path, module in PAGE["MODULES"].items():
        for call, _ in module.calls():
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            if name not in PAGE["CLASSES"] or path.name == "errors.py":
                continue
            given = [keyword for keyword in call.keywords if keyword.arg == "code"]
            place = f"{path.name}, line {call.lineno}"
            assert len(given) == 1, f"{place}: no code"
            assert call.keywords[0].arg == "code", f"{place}: the code comes first"
            handed = isinstance(given[0].value, (ast.Name, ast.Attribute))
            assert handed or PAGE["codes"](call, path), f"{place}: not a code in words"


def test_codes_are_words():
    """Kebab-case, for errors and findings alike, with a message each."""
    for rows in (PAGE["error_codes"](), PAGE["finding_codes"]()):
        assert len(rows) > 40
        for code in rows:
            assert CODE.fullmatch(code), code
    assert PAGE["error_codes"]()["output-exists"].kinds == {"UsageError": None}
    assert "unknown-recipe-key" in PAGE["error_codes"]()


def test_the_library_names_no_options():
    """Texts outside of the command line and of the cards speak of parameters, not of --options."""
    for path, module in PAGE["MODULES"].items():
        inside = path.relative_to(PACKAGE).parts
        if inside[0] == "cli" or inside == ("output", "card.py"):
            continue
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(module.tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = re.search(r"(?<![\w-])--[a-z][a-z-]+", node.value)
                assert found is None or id(node) in docstrings, f"{path}: {found[0]}"


@pytest.mark.parametrize(
    "kind", [k for k in vars(errors).values() if isinstance(k, type) and k is not type]
)
def test_errors_cross_processes(kind):
    """A copy through pickle says the same, of every class."""
    if not issubclass(kind, ParamDeltaError):
        return
    error = kind("what", code="some-code", where="here", expected="e", got="g", remedy="r")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert again.to_dict() == error.to_dict()
        assert str(again) == str(error)
        assert again.args == error.args


def test_subclasses_with_other_arguments_cross_processes():
    """What a subclass keeps of its own is kept."""

    error = Odd(1, 2)
    again = pickle.loads(pickle.dumps(error))
    assert (again.one, again.other, again.code) == (1, 2, "odd")


class Odd(MisfitError):
    """An error with other arguments."""

    def __init__(self, one, other):
        self.one, self.other = one, other
        super().__init__("odd", code="odd")


def test_a_code_is_needed():
    """An error without a code is a mistake of the program."""
    with pytest.raises(TypeError, match="code"):
        UsageError("what")


def test_parameters_in_texts():
    """As Python passes them, so that a text can be followed to the letter."""
    assert parameter("allow", ("a-b",)) == "`allow=('a-b',)`"
    assert parameter("graft", ("a`b",)) == "`graft`"


def test_the_parts_are_lines():
    """What, where, expected, got and the remedy; empty ones are left out."""
    error = CheckpointError("no", code="no", where="here", expected="this", remedy="that")
    assert str(error) == "no\n  where: here\n  expected: this\n  what to do: that"


@given(ANY, ANY, ANY)
def test_names_from_files_cannot_break_a_message(what, where, got):
    """Control characters are escapes, and a line feed begins no line that looks like ours."""
    text = str(CheckpointError(f"a{what}", code="a", where=f"b{where}", got=f"c{got}"))
    lines = text.split("\n")
    assert all(line.isprintable() for line in lines)
    ours = [line for line in lines if not line.startswith("      ")]
    assert [line[:3] for line in ours[1:]] == ["  w", "  g"]
    text.encode()
