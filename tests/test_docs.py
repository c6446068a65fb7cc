"""The docs hold what the program says and what was measured."""

import re
import runpy
from dataclasses import fields
from pathlib import Path

from benchmarks import resources
from paramdelta import read_recipe
from paramdelta.recipe import reader
from paramdelta.recipe.schedule import PRESETS
from paramdelta.schemes.dare import Dare
from paramdelta.schemes.scheme import schemes

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


def test_the_tree_of_modules_is_up_to_date():
    """CONTRIBUTING.md is what `make docs` would write."""
    page = runpy.run_path(str(ROOT / "docs" / "tree.py"))
    assert (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8") == page["render"]()


def test_the_figures_of_streaming_are_those_measured():
    """docs/streaming.md is what `python docs/streaming.py` would write from the results."""
    page = runpy.run_path(str(ROOT / "docs" / "streaming.py"))
    assert (ROOT / "docs" / "streaming.md").read_text(encoding="utf-8") == page["render"]()


def test_presets_in_the_page_on_recipes():
    """The table has each preset in its order, in the words of the code."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = text.split("<!-- presets -->")[1].split("<!-- /presets -->")[0].strip().splitlines()
    assert table[2:] == [f"| `{name}` | {what} |" for name, what in PRESETS.items()]


def test_recipes_in_the_page_can_be_read(tmp_path):
    """Every YAML block is a whole recipe, and is what `to_yaml` writes of it again."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        (tmp_path / "recipe.yaml").write_text(block, encoding="utf-8")
        found = read_recipe(tmp_path / "recipe.yaml")
        (tmp_path / "again.yaml").write_text(found.to_yaml(), encoding="utf-8")
        assert read_recipe(tmp_path / "again.yaml") == found


def test_keys_in_the_page_are_those_of_a_recipe():
    """The tables of keys name each key of a recipe and of what is in it, and no other."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    parameters = {field.name for kind in (Dare, *schemes().values()) for field in fields(kind)}
    keys = {*reader.RECIPE_KEYS, *reader.DELTA_KEYS, *reader.RULE_KEYS, *schemes()}
    assert named == keys | parameters


def test_the_table_of_resources_is_what_was_measured():
    """docs/resources.md is what `python -m benchmarks.resources` would write."""
    assert resources.PAGE.read_text(encoding="utf-8") == resources.render()


def test_recipes_of_the_four_scenarios():
    """Each can be read, says what to replace, and is named in the page."""
    page = (ROOT / "docs" / "how-to.md").read_text(encoding="utf-8")
    found = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
    assert len(found) == 5
    for path in found:
        assert path.name in page
        assert "# Scenario" in path.read_text(encoding="utf-8")
        assert read_recipe(path).deltas


def test_the_site(tmp_path):
    """Every page is in the menu, every public name in the reference, every link leads to a file."""
    site = runpy.run_path(str(ROOT / "docs" / "site.py"))
    site["assemble"](tmp_path)
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("nav:\n")[1]
    listed = set(re.findall(r": ([\w-]+\.md)", menu))
    assert listed == {path.name for path in tmp_path.glob("*.md")}
    for page in tmp_path.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"
    reference = (tmp_path / "reference.md").read_text(encoding="utf-8")
    assert {"mix", "Plan", "progress_bar"} <= set(re.findall(r"\.(\w+)$", reference, re.MULTILINE))
