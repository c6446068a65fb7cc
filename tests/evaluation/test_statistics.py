"""Standard errors, transfer efficiency, γ, intervals and paired tests."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from paramdelta.demo.tour import LINEAGE
from paramdelta.evaluation import statistics
from paramdelta.evaluation.statistics import (
    LEAST_TASKS,
    Table,
    adjusted,
    difference,
    efficiency,
    gain,
    line,
    mcnemar,
)
from studies.evaluation.coverage import coverage_table, simulate

ROOT = Path(__file__).parents[2]


def right(count, of):
    """Scores of a model that has the first ``count`` items right."""
    return [1.0] * count + [0.0] * (of - count)


def test_means_and_standard_errors():
    """The error of 30 right of 100 is the standard deviation over the root of the number."""
    table = Table({"t": {"m": right(30, 100)}, "one": {"m": [1.0]}})
    found = table.mean("t", "m")
    assert (found.value, found.items) == (pytest.approx(0.3), 100)
    assert found.error == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert table.mean("one", "m").error is None
    assert table.average("m").value == pytest.approx(0.65)
    assert table.mean("t", "absent") is None
    assert table.average("absent") is None


def test_three_definitions_of_efficiency():
    """Of direct, of what direct adds to new base, and of post; by hand."""
    table = Table(
        {
            "a": {"P": right(60, 100), "D": right(80, 100), "N": right(40, 100)},
            "b": {"P": right(30, 100), "D": right(20, 100), "N": right(0, 100)},
        }
    )
    assert efficiency(table, "P", "D").value == pytest.approx(0.9)
    assert gain(table, "P", "D", "N").value == pytest.approx(0.5 / 0.6)
    assert efficiency(table.only("a"), "P", "D").value == pytest.approx(0.75)
    low, high = efficiency(table.only("a"), "P", "D").items
    assert low < 0.75 < high < 1


def test_what_is_undefined_has_no_value():
    """Direct that scores nothing, or not more than new base, gives no quotient."""
    table = Table({"a": {"P": right(1, 50), "D": right(0, 50), "N": right(9, 50)}})
    assert efficiency(table, "P", "D").value is None
    assert gain(table, "P", "D", "N").value is None
    near = Table({"a": {"P": right(11, 50), "D": right(10, 50), "N": right(9, 50)}})
    assert gain(near, "P", "D", "N").value == pytest.approx(2)
    assert gain(near, "P", "D", "N").items is None  # the denominator may be 0
    assert efficiency(table, "P", "absent").value is None


def test_slope_through_the_origin():
    """The paper's γ by hand, and R² of a perfect line."""
    sizes = (10, 20, 40, 60, 100)
    table = Table({str(n): {"P": right(n * 9 // 10, 100), "D": right(n, 100)} for n in sizes})
    found = line(table, "P", "D")
    assert found.slope.value == pytest.approx(0.9)
    assert found.r2 == pytest.approx(1)
    low, high = found.slope.tasks
    assert low == pytest.approx(high)  # every choice of tasks has the same slope
    few = line(Table({t: table.scores[t] for t in table.tasks[: LEAST_TASKS - 1]}), "P", "D")
    assert few.slope.tasks is None


def test_a_perfect_score_is_not_certain():
    """All of 100 right in both: the interval has a width."""
    table = Table({"a": {"P": right(100, 100), "D": right(100, 100)}})
    low, high = efficiency(table, "P", "D").items
    assert 0.95 < low < 0.999 < 1.001 < high < 1.05


def test_mcnemar_by_hand():
    """Mid-p of 1 against 5: twice (C(6,0) + C(6,1) / 2) / 2⁶."""
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 3) / 64)
    assert mcnemar(5, 1) == mcnemar(1, 5)
    assert mcnemar(4, 4) == mcnemar(0, 0) == 1
    assert mcnemar(0, 2000) < 1e-300


def test_paired_difference_counts_discordant_items():
    """Items that both have right say nothing; those that one has right decide."""
    table = Table({"a": {"P": right(60, 100), "D": right(80, 100)}})
    found = difference(table, "a", "P", "D")
    assert (found.only_first, found.only_second, found.test) == (0, 20, "McNemar")
    assert found.value == pytest.approx(-0.2)
    assert found.interval[1] < 0
    assert found.p == pytest.approx(2**-20)
    same = difference(table, "a", "P", "P")
    assert (same.value, same.p) == (0, 1)


def test_paired_difference_of_graded_scores():
    """A shift that is larger than its error is found; noise is not."""
    random = np.random.default_rng(3)
    scores = random.uniform(0.2, 0.8, 200)
    noise = random.normal(0, 0.1, 200)
    table = Table(
        {"a": {"P": scores, "near": scores + noise - noise.mean(), "off": scores + 0.03 + noise}}
    )
    assert difference(table, "a", "P", "near").p > 0.9
    found = difference(table, "a", "P", "off")
    assert found.p < 0.01
    assert found.test == "bootstrap"
    assert found.only_first is None


def test_several_tests_keep_their_level_together():
    """Holm's adjustment, by hand."""
    assert adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted([]) == []


def test_the_same_scores_give_the_same_intervals():
    """Everything random is seeded."""
    table = Table({"a": {"P": right(60, 100), "D": right(80, 100)}})
    assert efficiency(table, "P", "D") == efficiency(table, "P", "D")


@pytest.mark.parametrize(
    "scores", [{"P": [1.0], "D": [1.0, 0.0]}, {"P": [], "D": []}, {}, {"P": [math.nan]}]
)
def test_scores_that_do_not_pair_are_refused(scores):
    """Other numbers of items, none, or NaN."""
    with pytest.raises(ValueError, match="a: "):
        Table({"a": scores})


def test_intervals_cover_in_a_quick_simulation(monkeypatch):
    """A few simulated tables: no interval is far too narrow, no test rejects far too often."""
    monkeypatch.setattr(statistics, "REPLICATES", 300)
    for name, share in simulate(20).items():
        if name.startswith("rejected"):
            assert share < 0.3, name
        else:
            assert share > 0.7, name


def test_intervals_cover_in_the_committed_simulation():
    """1,000 tables: every interval covers in 93 to 97 %, and the tests keep their level."""
    record = json.loads((ROOT / "benchmarks/results/evaluation.json").read_text("utf-8"))
    assert record["tables"] >= 1000
    for name, share in record["shares"].items():
        if name.startswith("rejected"):
            assert share <= 0.065, name  # 5 % and two standard errors
        else:
            assert 0.93 <= share <= 0.97, name


def test_the_page_says_what_was_measured():
    """The table of docs/evaluation.md is made from the committed JSON."""
    record = json.loads((ROOT / "benchmarks/results/evaluation.json").read_text("utf-8"))
    page = (ROOT / "docs/evaluation.md").read_text("utf-8")
    assert f"<!-- coverage -->\n{coverage_table(record)}\n<!-- /coverage -->" in page
    assert f"<!-- tables -->{record['tables']}<!-- /tables -->" in page


def test_the_shipped_lineage():
    """Item by item, as `studies.transfer` recorded it: ParamΔ is not worse than direct."""
    record = json.loads((ROOT / "docs/study/shipped.json").read_text("utf-8"))
    models = record["models"] | {"ParamΔ": record["alpha"]["1"]}
    tasks = json.loads((LINEAGE / "tasks.json").read_text("utf-8"))
    table = Table(
        {t: {m: [float(bit) for bit in bits[t]] for m, bits in models.items()} for t in tasks}
    )
    trained = Table({t: row for t, row in table.scores.items() if row["direct"].any()})
    found = efficiency(trained, "ParamΔ", "direct")
    assert found.items[0] < found.value < found.items[1]
    assert found.tasks[0] < found.value < found.tasks[1]
