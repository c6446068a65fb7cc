"""A few of the kills and races of `tests.torture`; `make torture` runs a thousand."""

import json
from pathlib import Path

import pytest

from tests.crash import forks
from tests.torture import RESULT, kill, race, scenarios

pytestmark = forks


@pytest.mark.parametrize("name", ["mix --overwrite", "extract --overwrite", "extract --as lora"])
def test_kills(tmp_path, name):
    """At the last calls of a run: nothing is lost, nothing differs, nothing is left over."""
    (scenario,) = (each for each in scenarios(tmp_path / "sources") if each.name == name)
    done = kill(scenario, 6, 1, tmp_path / "work", {})
    assert done["kills"] >= 4


def test_races(tmp_path):
    """Two runs on one output, with and without --fresh and --overwrite."""
    done = race(8, 1, tmp_path)
    assert done["pairs"] == 8
    assert done["one blocked"] + done["one after the other"] == 8


def test_the_page_says_what_was_measured():
    """SECURITY.md's figures are those of the committed measurement."""
    done = json.loads(RESULT.read_text(encoding="utf-8"))
    tries = sum(each["tries"] for each in done["kills"].values())
    kills = sum(each["kills"] for each in done["kills"].values())
    page = (Path(__file__).parents[1] / "SECURITY.md").read_text(encoding="utf-8")
    assert f"{tries} tries with {kills} kills, and {done['pairs']['pairs']} pairs" in page
