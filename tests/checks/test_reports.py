"""Public reports: what the check finds in a folder of each, and that the page says the same."""

import ast
import re
from pathlib import Path

import pytest

from paramdelta.checks import check
from paramdelta.planning.findings import Severity
from tests.checks.reports import REPORTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("each", REPORTS, ids=lambda each: each.source.partition(",")[0])
def test_report(tmp_path, each):
    """All that is named is found; nothing at all where the folder is right."""
    each.build(tmp_path)
    found = {f.code for f in check(tmp_path).findings if f.severity is not Severity.NOTE}
    assert set(each.found) <= found
    assert bool(found) == bool(each.found)


def test_page_has_the_reports():
    """One line each, in the order of the table."""
    lines = [
        f"| {each.source} | {each.gist} | "
        + (", ".join(f"`{code}`" for code in each.found) or "nothing: the folder is right")
        + " |"
        for each in REPORTS
    ]
    table = PAGE.split("<!-- reports -->")[1].split("<!-- /reports -->")[0].strip().splitlines()
    assert table[2:] == lines


# Codes that the source puts together or keeps in a table.
MADE = {"bos-disagrees", "pad-disagrees", "vocab-size-disagrees", "tie-disagrees"}
MADE |= {"link-outside", "not-a-file", "not-finite", "negative-variance", "negative-scale"}


def test_page_has_the_codes():
    """Every code that the package can give, and no other."""
    given = set(MADE)
    for path in (ROOT / "src" / "paramdelta" / "checks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and len(node.args) > 2:
                code = node.args[1]
                if getattr(node.func, "attr", "") == "add" and isinstance(code, ast.Constant):
                    given.add(code.value)
    table = PAGE.split("<!-- codes -->")[1].split("<!-- /codes -->")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)) == given
