"""The crossed study at toy size: its skills, its mixes, a run, and its registered measures."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given  # noqa: E402 (after the skip)
from hypothesis import strategies as st  # noqa: E402

from studies.crossed import analysis, combine  # noqa: E402
from studies.crossed.lineage import Lineage  # noqa: E402
from studies.crossed.run import run, toy  # noqa: E402
from studies.crossed.settings import PREREGISTRATION, SETTINGS, read_settings  # noqa: E402
from studies.encoders.settings import digest  # noqa: E402
from studies.lineage import text  # noqa: E402

pytestmark = pytest.mark.hf
numbers = st.floats(-4, 4, allow_subnormal=False)


def test_the_registration_names_its_settings() -> None:
    """The preregistration holds the digest of settings.json; eight fresh seeds are registered."""
    named = re.findall(r"[0-9a-f]{64}", PREREGISTRATION.read_text(encoding="utf-8"))
    assert named == [digest(SETTINGS)]
    settings = read_settings()
    assert len(set(settings.seeds)) >= 8
    assert min(settings.seeds) > 5
    assert settings.shape.width >= 128
    assert settings.chat.steps == max(settings.delta_steps)


def test_half_of_the_skills_are_in_no_text(tmp_path: Path) -> None:
    """A seed's unread skills occur neither in pretraining nor in the continuation."""
    for seed in (101, 102):
        line = Lineage(seed, toy(read_settings()), tmp_path)
        assert len(line.read) == len(line.unread) == 4
        streams = (
            text.base_text(line.world, "x", line.read, primer=0),
            text.general_text(line.world, "x", line.read),
        )
        documents = [d for stream in streams for d in itertools.islice(stream, 400)]
        words = {"join": "Join these", "list": "Make a list", "first": "first word of"}
        words |= {"last": "last word of"}
        for skill, question in words.items():
            assert any(question in d for d in documents) == (skill in line.read), skill


def test_a_run_writes_each_seed_once(tmp_path: Path) -> None:
    """Every cell and mix is scored, the measures can be computed, and a second run is idle."""
    settings = replace(toy(read_settings()), seeds=(101,))
    run(settings, tmp_path / "cache", tmp_path / "out", {"stamp": 1})
    (cells,) = analysis.read(tmp_path / "out", "cells")
    assert len(cells["cells"]) == 4
    assert cells["delta norm"]["1"] < cells["delta norm"]["3"]
    assert set(next(c for c in cells["cells"] if "scales" in c)["scales"]) == {"1.1", "1.2"}
    (several,) = analysis.read(tmp_path / "out", "several")
    assert len(several["mixes"]) == 6
    assert several["norms"]["common once"] < several["norms"]["sum"]
    assert several["norms"]["half"] == pytest.approx(several["norms"]["sum"] / 2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    run(settings, tmp_path / "cache", tmp_path / "out", {"stamp": 1})
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_waypoint_does_not_depend_on_what_follows(tmp_path: Path) -> None:
    """The model after one step is the same whether or not the training goes on."""
    settings = toy(read_settings())
    long = Lineage(101, settings, tmp_path / "a")
    short = Lineage(101, replace(settings, delta_steps=(1,)), tmp_path / "b")
    one = long.chatted("post", long.base, settings.delta_steps)[1]
    other = short.chatted("post", short.base, (1,))[1]
    assert all(torch.equal(w, other[name]) for name, w in one.items())


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20))
def test_the_common_part_of_two_deltas(pairs: list[tuple[float, float]]) -> None:
    """It is never larger than either, shares their sign, and of Δ with itself it is Δ."""
    first = {"w": torch.tensor([a for a, _ in pairs], dtype=torch.float64)}
    second = {"w": torch.tensor([b for _, b in pairs], dtype=torch.float64)}
    found = combine.common(first, second)["w"]
    for c, a, b in zip(found.tolist(), first["w"].tolist(), second["w"].tolist(), strict=True):
        same = (a > 0 and b > 0) or (a < 0 and b < 0)
        assert c == (math.copysign(min(abs(a), abs(b)), a) if same else 0)
    assert torch.equal(combine.common(first, first)["w"], first["w"])


def result(b: float, c: float) -> dict:
    """A seed whose transfer is 0.5 + b log shift + c log Δ, with Δ and shift of e^0, e^1 …"""
    cells = [
        {
            "shift": s,
            "delta": d,
            "ParamΔ": {"overall": 100 * (0.5 + b * s + c * d), "skills in": 40, "skills out": 10},
            "direct": {"overall": 100.0, "skills in": 80, "skills out": 40},
        }
        for s in (0, 1, 2)
        for d in (0, 1, 2)
    ]
    zero = {"overall": 0.0, "skills in": 0.0, "skills out": 0.0}
    return {
        "cells": cells,
        "base": zero,
        "post": {str(d): {"overall": 30.0} for d in (0, 1, 2)},
        "new base": {str(s): zero for s in (0, 1, 2)},
        "shift norm": {str(s): math.exp(s) for s in (0, 1, 2)},
        "delta norm": {str(d): math.exp(d) for d in (0, 1, 2)},
    }


def test_registered_measures_by_hand() -> None:
    """Slopes, gain and in − out of results that were made to have them."""
    results = [result(-0.1, 0.1), result(-0.1, 0.1)]
    assert analysis.slopes(results[0]) == pytest.approx((-0.1, 0.1))
    found = analysis.primary(results, 1, 1)
    assert found["b + c"] == pytest.approx((0, 0), abs=1e-9)
    assert found["gain"] == pytest.approx((20, 0))
    assert found["direct's gain"] == pytest.approx((70, 0))
    assert found["in − out"] == pytest.approx((0.25, 0))
    assert analysis.primary([result(-0.2, 0.05)] * 2, 1, 1)["b + c"][0] == pytest.approx(-0.15)


def test_several_are_compared_with_the_sum() -> None:
    """Differences in the overall score, with the wider interval of five comparisons."""
    mixes = [
        {"mixes": {"sum": {"overall": 20 + s}, "half": {"overall": 30 + 2 * s}}} for s in (0, 2)
    ]
    mean, half = analysis.several(mixes)["half"]
    assert mean == 11
    assert half == pytest.approx(63.657 * 2**0.5 / 2**0.5)


def test_committed_results_were_made_under_the_registration() -> None:
    """Each committed result file carries the digests of both registered files."""
    for path in (Path(__file__).parents[3] / "docs" / "study-crossed").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["settings_sha256"] == digest(SETTINGS), path.name
        assert record["preregistration_sha256"] == digest(PREREGISTRATION), path.name
