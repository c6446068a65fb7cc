"""The study of transfer: its mixing, its figures, and a run at a size that says nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from studies.lineage.make import SHIPPED  # noqa: E402 (after the skip)
from studies.lineage.model import Shape, new_weights, rounded  # noqa: E402 (after the skip)
from studies.pages import typed_numbers  # noqa: E402
from studies.transfer import figures, page, plot, summary  # noqa: E402
from studies.transfer.distance import run_distance  # noqa: E402
from studies.transfer.lab import Lab, Programme, tiny  # noqa: E402
from studies.transfer.measures import measure  # noqa: E402
from studies.transfer.mix import (  # noqa: E402
    mix,
    part_of,
    permuted,
    randomised,
    to_bf16,
    without,
)
from studies.transfer.overlap import overlap  # noqa: E402
from studies.transfer.run import Plan, run  # noqa: E402

pytestmark = pytest.mark.hf
ROOT = Path(__file__).parents[2]
SHAPE = Shape(vocabulary=64, width=16, layers=1, heads=2, kv_heads=1, inner=24)


def three(seed: int = 0):
    """base, post and new base, rounded to bf16."""
    base = rounded(new_weights(SHAPE, seed))
    noises = (new_weights(SHAPE, seed + i) for i in (1, 2))
    post, new = (rounded({k: w + 0.1 * n[k] for k, w in base.items()}) for n in noises)
    return base, post, new


def test_bf16_is_rounded_once() -> None:
    """A float64 just above a tie goes up, where a detour by float32 would go to even."""
    wide = torch.tensor(
        [1 + 2**-8, 1 + 2**-8 + 2**-40, 1 + 3 * 2**-8 - 2**-40, -1 - 2**-8 - 2**-40],
        dtype=torch.float64,
    )
    assert to_bf16(wide).tolist() == [1.0, 1 + 2**-7, 1 + 2**-7, -1 - 2**-7]


def test_mixing_onto_the_old_base_gives_post_and_no_delta_gives_the_new_base() -> None:
    """The two identities of the formula hold byte for byte."""
    base, post, new = three()
    back = mix(base, [(post, base, 1.0)])
    same = mix(new, [(base, base, 1.0)])
    assert all(torch.equal(back[name], post[name]) for name in post)
    assert all(torch.equal(same[name], new[name]) for name in new)


def test_leaving_out_every_part_leaves_nothing() -> None:
    """Each tensor is in one part; post without it is the base there and post elsewhere."""
    base, post, _ = three()
    for part in ("embedding", "attention", "mlp", "norms"):
        left = without(post, base, part)
        assert {name for name in post if torch.equal(left[name], base[name])} == {
            name for name in post if part_of(name) == part or torch.equal(post[name], base[name])
        }


def test_controls_keep_the_size_of_the_delta() -> None:
    """A permuted Δ has the same values, a random one the same norm, at other places."""
    base, post, _ = three()
    name = "model.embed_tokens.weight"
    delta = post[name] - base[name]
    moved = permuted(post, base, 1)[name] - base[name]
    noise = randomised(post, base, 1)[name] - base[name]
    assert torch.allclose(delta.flatten().sort().values, moved.flatten().sort().values, atol=1e-6)
    assert not torch.allclose(delta, moved, atol=1e-3)
    assert torch.allclose(noise.norm(), delta.norm(), rtol=1e-4)


def test_measures_of_no_move() -> None:
    """A new base that did not move has no shift, no cosine and no barrier."""
    base, post, _ = three()
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    text = [(ids, ids.roll(-1, 1), torch.ones(2, 1, 12, 12, dtype=torch.bool).tril())]
    found = measure(base, post, base, SHAPE, text)
    assert found["shift norm"] == found["shift / delta"] == found["cosine"] == 0
    assert found["barrier"] == pytest.approx(0, abs=1e-6)
    assert found["delta norm"] > 0


def test_figures() -> None:
    """γ, R², intervals and rank correlation of series worked out by hand."""
    slope, fit = figures.gamma([10.0, 20.0, 40.0], [9.0, 18.0, 36.0])
    assert slope == pytest.approx(0.9)
    assert fit == pytest.approx(1)
    assert figures.interval([1.0, 2.0, 3.0]) == pytest.approx((2, 4.303 / math.sqrt(3)), rel=1e-3)
    assert math.isnan(figures.interval([1.0])[1])
    assert figures.spearman([1.0, 2.0, 3.0], [5.0, 6.0, 9.0]) == pytest.approx(1)
    assert figures.spearman([1.0, 2.0, 2.0], [3.0, 2.0, 2.0]) == pytest.approx(-1)
    assert figures.efficiency(50, 80) == pytest.approx(62.5)
    assert math.isnan(figures.efficiency(50, 0))


def test_thresholds_of_a_predictor() -> None:
    """ "Whole" ends before the first point under 95 %, "broken" begins under 50 %."""
    points = [
        {
            "measures": {n: 0.0 if n == "cosine" else x for n in summary.PREDICTORS},
            "rate": x,
            "steps": 2,
            "efficiency": kept,
        }
        for x, kept in ((0.1, 100.0), (0.2, 96.0), (0.3, 80.0), (0.4, 97.0), (0.5, 20.0))
    ]
    found = summary.predictions(points)
    assert found["barrier"]["whole below"] == 0.2
    assert found["barrier"]["broken above"] == 0.5
    assert all(math.isnan(value) for value in found["cosine"].values())
    assert found["barrier"]["rank"] == pytest.approx(-0.7)


def test_shares_and_differences() -> None:
    """Shares of direct, capped and not, and paired differences, worked out by hand."""
    results = [
        {
            "tasks": ["a", "b"],
            "models": {
                "post": {"a": 40.0, "b": 0.0},
                "ParamΔ": {"a": 20.0, "b": 60.0},
                "direct": {"a": 50.0, "b": 30.0},
            },
        }
    ]
    assert summary.shares_of_direct(results, "ParamΔ") == [100.0]
    assert summary.shares_of_direct(results, "ParamΔ", capped=True) == [62.5]
    assert summary.differences(results, "ParamΔ", "post", ["a", "b"]) == [20.0]
    assert summary.differences(results, "ParamΔ", "post", ["b"]) == [60.0]


def test_the_page_is_what_its_json_says() -> None:
    """docs/study.md is what `python -m studies.transfer.page` would write."""
    template = page.TEMPLATE.read_text(encoding="utf-8")
    found = page.render(template, ROOT / "docs" / "study")
    assert (ROOT / "docs" / "study.md").read_text(encoding="utf-8") == found


def test_no_number_is_typed_into_the_template() -> None:
    """Outside marks, links and code, the template holds no digits but names and section numbers."""
    names = ("ICLR 2025", "BF16", "commit 9aac227", "95 %", "100 %", "α = 1", "weight 1")
    assert typed_numbers(page.TEMPLATE.read_text(encoding="utf-8"), names) == []
    assert typed_numbers("It reaches 97 % ({{share}}, `-n 2`, [x](y2.md)).", names) == ["97"]


def test_the_shipped_scores_are_those_of_the_package() -> None:
    """The study's verdicts on the shipped lineage add up to the scores in the package."""
    shipped = json.loads((SHIPPED / "scores.json").read_text(encoding="utf-8"))
    found = page.shipped_scores(ROOT / "docs" / "study")
    for ours, theirs in (("post", "post"), ("direct", "direct"), ("post 2", "second-post")):
        assert found[ours] == pytest.approx(shipped[theirs])


@pytest.fixture(scope="module")
def small() -> Programme:
    """The study's settings at a size that says nothing."""
    return tiny(Programme())


def test_a_study_runs_from_training_to_plots_and_tables(small, tmp_path: Path) -> None:
    """Every part but the long ones: JSON, plots and tables come out, final questions apart."""
    parts = ["scenarios", "parts", "controls", "final"]
    run(Plan(2, small, tmp_path / "cache"), parts, tmp_path / "out")
    for name in ("scenarios", "alpha", "gamma", "causes"):
        figure = plot.PLOTS[name][1](tmp_path / "out")
        assert figure.axes
    template = "a\n{{table: headline}}\n{{table: final}}\n{{seeds}} {{post in several}}\n"
    page_text = page.render(template, tmp_path / "out")
    assert page_text.count("| several Δ |") == 2
    assert "{{" not in page_text
    record = json.loads((tmp_path / "out" / "scenarios.json").read_text())
    assert len(record["results"]) == 8
    assert "alpha" not in json.loads((tmp_path / "out" / "final.json").read_text())["results"][0]


def test_overlap_counts_questions_that_a_training_consumed(small) -> None:
    """A long chat training meets some word tasks of the tests, and never a fact of the tests."""
    longer = replace(small, items=300, chat=replace(small.chat, steps=200, rows=20))
    found = overlap(1, longer, final=False)
    assert found["chat"]["old facts"] == found["chat"]["json"] == 0
    assert found["chat"]["repeat"] > 0
    assert not any(found["pretraining"].values())  # at this size it is notes only


def test_waypoints_are_trained_once_and_on_the_way(small, tmp_path: Path) -> None:
    """A continued base at a step is the same whether or not the training goes on after it."""
    lab = Lab(1, small, tmp_path / "a")
    points = run_distance(lab, rates=(1e-3,), multiples=(0.25, 0.5))
    assert [point["steps"] for point in points] == [1, 2]
    other = Lab(1, small, tmp_path / "b")
    names = other.waypoints(1e-3, [1])
    assert all(
        np.array_equal(w.numpy(), lab.waypoint(names[1])[key].numpy())
        for key, w in other.waypoint(names[1]).items()
    )
