"""The docs hold what the program says and what was measured."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_cli_reference_is_up_to_date():
    """docs/cli.md is what `make docs` would write."""
    page = runpy.run_path(str(ROOT / "docs" / "cli.py"))
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page["render"]()


def test_links_lead_somewhere():
    """Every relative link of the README and the docs names a file that exists."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_tree_in_the_readme_is_the_package():
    """Every module of the package has its line in the README's tree, and no other."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.split("src/paramdelta/")[1].split("```")[0]
    named = set(re.findall(r"(\w+\.py)\s", tree))
    modules = {p.name for p in (ROOT / "src" / "paramdelta").rglob("*.py")} - {"__init__.py"}
    assert named == modules
