"""The analysis of the encoder study on results worked out by hand, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.encoders import analysis, page
from studies.encoders.settings import read_settings
from studies.pages import typed_numbers

ROOT = Path(__file__).parents[3]
RANKS = {  # model -> ranks of the two items of each set
    "base": [10, 10],
    "code": [2, 4],
    "medical": [4, 4],
    "medical+code": [1, 1],
    "code+medical": [1, 1],
    "mix": [1, 2],
    "average": [2, 2],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder with two equal seeds; every set has two items in two groups."""

    def record(ranks: list[int]) -> dict:
        sets = {name: {"ranks": ranks, "near_ranks": ranks} for name in analysis.SETS}
        extra = {"norms": {"code": 1.0, "medical": 2.0}, "cosine": 0.5}
        return {"sets": sets, **extra, "same_in_both_directions": True}

    groups = {name: [0, 1] for name in analysis.SETS}
    (tmp_path / "items.json").write_text(json.dumps({"groups": groups}))
    for model, ranks in RANKS.items():
        names = ["base"] if model == "base" else [f"usual-{seed}-{model}" for seed in (1, 2)]
        for name in names:
            (tmp_path / f"{name}.json").write_text(json.dumps(record(ranks)))
    (tmp_path / "usual-3-mix.json").write_text("{}")  # a seed that is not complete
    return tmp_path


def test_measures_by_hand(results: Path) -> None:
    """Scores, gain, share of the gain and gap closed of ranks 1, 2, 4."""
    arm = analysis.read_arm(results, "usual", [("usual", 1), ("usual", 2), ("usual", 3)])
    assert arm.seeds == (1, 2)
    found = analysis.directions(arm, 200)["code"]
    assert {role: scores["both"][0] for role, scores in found.scores.items()} == pytest.approx(
        {"base": 10, "post": 37.5, "new base": 25, "average": 50, "ParamΔ": 75, "direct": 100}
    )
    assert found.gain()[0] == pytest.approx(37.5)
    assert found.share_of_gain().value == pytest.approx(60)
    assert found.gap_closed("mbpp").value == pytest.approx(100 * 50 / 75)
    assert found.share_of_direct("code").value == pytest.approx(75)
    assert found.near["post"]["code"][0] == 0
    assert found.near["ParamΔ"]["code"][0] == 50


def test_differences_are_paired(results: Path) -> None:
    """Two models that differ by the same in every item have a difference without spread."""
    arm = analysis.read_arm(results, "usual", [("usual", 1), ("usual", 2)])
    found = analysis.directions(arm, 200)["code"]
    spread = np.ptp(found.difference("average", "new base", "code"))
    assert spread < 1e-9
    assert np.ptp(found.scores["post"]["code"]) > 1


def test_a_ratio_without_room_is_not_reported(results: Path) -> None:
    """Where direct is not above the models one has, there is no share of the gain."""
    for seed in (1, 2):
        source = results / f"usual-{seed}-code.json"
        (results / f"usual-{seed}-medical+code.json").write_text(source.read_text())
    arm = analysis.read_arm(results, "usual", [("usual", 1), ("usual", 2)])
    found = analysis.directions(arm, 200)["code"]
    assert found.share_of_gain() is None
    assert analysis.estimate(found.gain()).value == pytest.approx(37.5)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_reciprocal_ranks(ranks: list[int]) -> None:
    """Each value is 100 / rank up to rank 10 and 0 beyond it."""
    found = analysis.reciprocal(np.array(ranks))
    assert list(found) == pytest.approx([100 / r if r <= 10 else 0 for r in ranks])


def test_verdicts() -> None:
    """An interval above, below or around zero."""
    made = [analysis.Estimate(1, *bounds).verdict for bounds in ((0.5, 2), (-2, -1), (-1, 2))]
    assert made == ["above 0", "below 0", "undecided"]


def test_the_first_paragraph_follows_the_results(results: Path) -> None:
    """It says how many seeds there are, that two are too few, and what the gain is."""
    found = page.render("{{result}}", results, read_settings())
    assert "after 2 of 5 registered seeds" in found
    assert "nothing is claimed yet" in found
    assert "ParamΔ gives more than the better of post and new base: 37.5 (" in found
    assert page.render("{{table: primary}}", results, read_settings()).count("too few seeds") == 4
    empty = results / "empty"
    empty.mkdir()
    (empty / "items.json").write_text((results / "items.json").read_text())
    assert "No result yet" in page.render("{{result}}", empty, read_settings())


def test_the_page_is_what_its_results_say() -> None:
    """docs/study-encoders.md is what `python -m studies.encoders.page` would write."""
    template = page.TEMPLATE.read_text(encoding="utf-8")
    found = page.render(template, ROOT / "docs" / "study-encoders", read_settings())
    assert (ROOT / "docs" / "study-encoders.md").read_text(encoding="utf-8") == found


def test_no_number_is_typed_into_the_template() -> None:
    """Outside marks, links and code, the template holds only digits of names and definitions."""
    names = (
        "MiniLM-L6-v2",
        "MRR@10 × 100",
        "SHA-256",
        "95 %",
        "α = 1",
        "/ 2",
        "bfloat16",
        "≥ 95 %",
    )
    assert typed_numbers(page.TEMPLATE.read_text(encoding="utf-8"), names) == []
