"""Models × tasks: what is kept, what is continued, what fails, and what is reported."""

import importlib.metadata
import json
import re
from pathlib import Path

import pytest

from paramdelta.demo.tour import LINEAGE, recipe
from paramdelta.errors import UsageError
from paramdelta.evaluation import statistics
from paramdelta.evaluation.card import card
from paramdelta.evaluation.evaluator import evaluate
from paramdelta.evaluation.output import write_report
from paramdelta.evaluation.pick import pick
from paramdelta.evaluation.report import facts, report
from paramdelta.evaluation.results import Results, digest_of
from tests.evaluation.lineage import DIRECT, Fake, suite, use

SCORES = {
    "new-base": [0, 0, 0, 1],
    "post": [1, 0, 1, 0],
    "paramdelta": [1, 1, 0, 1],
    "direct": [1, 1, 1, 1],
}
MODELS = ("post", "new-base", "paramdelta", DIRECT)


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """Few replicates; and versions of packages that may be absent."""
    monkeypatch.setattr(statistics, "REPLICATES", 100)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1")


def run(tmp_path, fake, monkeypatch, **options):
    """An evaluation of the shipped lineage with made-up answers."""
    use(fake, monkeypatch)
    options = {"models": MODELS, "out": tmp_path / "out"} | options
    return evaluate(recipe("plain", 1.0), suite(tmp_path), **options)


def test_every_model_is_asked_every_task_once(tmp_path, monkeypatch):
    """A second run asks nothing and says the same."""
    fake, again = Fake(SCORES), Fake(SCORES)
    first = run(tmp_path, fake, monkeypatch)
    assert len(fake.asked) == 8
    second = run(tmp_path, again, monkeypatch)
    assert (again.asked, second.resumed) == ([], 8)
    assert facts(second) == facts(first)
    assert first.table().mean("one", "paramdelta").value == 0.75


def test_other_settings_are_another_measurement(tmp_path, monkeypatch):
    """Another limit, or a damaged file, is asked again."""
    run(tmp_path, Fake(SCORES), monkeypatch)
    fake = Fake(SCORES)
    run(tmp_path, fake, monkeypatch, limit=3)
    assert len(fake.asked) == 8
    (tmp_path / "out/samples/post/one.json").write_text('{"digest": 3')
    fake = Fake(SCORES)
    run(tmp_path, fake, monkeypatch, limit=3)
    assert fake.asked == ["post one"]


@pytest.mark.parametrize("stop", [0, 3, 7])
def test_an_interrupted_run_is_continued(tmp_path, monkeypatch, stop):
    """Stopped at any question: what is finished stays, and the result is the same."""
    whole = facts(run(tmp_path, Fake(SCORES), monkeypatch, out=None))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Fake(SCORES, stops=stop), monkeypatch)
    fake = Fake(SCORES)
    assert facts(run(tmp_path, fake, monkeypatch)) == whole
    assert len(fake.asked) == 8 - stop


def test_a_task_that_fails_loses_nothing_else(tmp_path, monkeypatch):
    """Its cells are failures with a reason on one line; the next run tries only them."""
    found = run(tmp_path, Fake(SCORES, fails=("one",)), monkeypatch)
    assert {f.task for f in found.failures} == {"one"}
    assert found.failures[0].what == "RuntimeError: out of luck"
    assert found.table().tasks == ("two",)
    fake = Fake(SCORES)
    assert run(tmp_path, fake, monkeypatch).failures == ()
    assert [asked.split()[1] for asked in fake.asked] == ["one"] * 4


def test_code_is_not_executed_unless_allowed(tmp_path, monkeypatch):
    """Its tasks are failures that say so."""
    use(Fake(SCORES), monkeypatch)
    (tmp_path / "code.yaml").write_text("tasks: {a: {own: humaneval, data: humaneval}}")
    found = evaluate(recipe("plain", 1.0), tmp_path / "code.yaml", models=("post",))
    assert [f.code for f in found.failures] == ["code-not-allowed"]


def test_progress_counts_models_and_tasks(tmp_path, monkeypatch):
    """From the first question to the last, with the time that is left."""
    seen = []
    run(tmp_path, Fake(SCORES), monkeypatch, progress=seen.append)
    assert (seen[0].done, seen[-1].done, seen[-1].total, seen[-1].left) == (0, 8, 8, 0)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"models": ("base", "base")}, "invalid-models"),
        ({"models": ()}, "invalid-models"),
        ({"models": ("best",)}, "unknown-model"),
        ({"models": ("../x=y",)}, "invalid-model-name"),
        ({"models": ("x=/no/such/place",)}, "no-such-checkpoint"),
        ({"models": (f"x={LINEAGE / 'post/config.json'}",)}, "not-a-model"),
        ({"limit": 0}, "invalid-limit"),
        ({"data_folder": LINEAGE / "nowhere"}, "no-data-folder"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, options, code):
    """Before anything is loaded."""
    with pytest.raises(UsageError) as caught:
        run(tmp_path, Fake(SCORES), monkeypatch, **options)
    assert caught.value.code == code


def test_the_files_of_an_evaluation(tmp_path, monkeypatch):
    """JSON with every number, Markdown and HTML of it; text of models is escaped."""
    found = run(tmp_path, Fake(SCORES), monkeypatch)
    out = tmp_path / "out"
    write_report(found, None, out)
    read = json.loads((out / "results.json").read_text("utf-8"))
    assert read == json.loads(json.dumps(facts(found)))
    assert read["transfer"]["paramdelta"]["of direct"]["all"]["value"] == pytest.approx(0.75)
    text = (out / "report.md").read_text("utf-8")
    assert "| one | 50.0 ± 28.9 | 25.0 ± 25.0 | 75.0 ± 25.0 | 100.0 ± 0.0 | 4 |" in text
    assert "three: not in the suite: it is not there" in text
    html = (out / "report.html").read_text("utf-8")
    assert "&lt;b&gt;one 1&lt;/b&gt;" in html
    assert "<b>" not in html
    assert "<script" not in html
    assert "paramdelta &amp; co" in html
    assert len(re.findall("<circle", html)) == 2
    assert "model-index:" in (out / "card.md").read_text("utf-8")


def test_hostile_text_stays_text(tmp_path, monkeypatch):
    """A failure's text cannot add a line or a cell to the report."""
    found = run(tmp_path, Fake(SCORES, fails=("two",)), monkeypatch)
    read = facts(found)
    read["failures"][0]["what"] = "x\n# heading | <img src=x> [a](http://b)"
    assert "\n# heading" not in report(read)
    assert "<img" not in report(read)


def test_scales_and_the_pick(tmp_path, monkeypatch):
    """The best scale on even questions is reported on the odd ones."""
    scores = {"paramdelta@0.5": [1, 0, 1, 0], "paramdelta@1": [0, 1, 0, 1]}
    found = run(tmp_path, Fake(scores), monkeypatch, models=("paramdelta",), scales=(0.5, 1.0))
    chosen = pick(found)
    assert (chosen.model, chosen.validation) == (
        "paramdelta@0.5",
        {"paramdelta@0.5": 1.0, "paramdelta@1": 0.0},
    )
    assert chosen.test["one"]["value"] == 0
    assert "name: paramdelta@0.5" in card(facts(found) | {"picked": chosen.to_dict()})
    with pytest.raises(UsageError, match="too few questions"):
        pick(
            run(
                tmp_path,
                Fake(scores),
                monkeypatch,
                models=("paramdelta",),
                scales=(0.5, 1.0),
                limit=1,
            )
        )


def test_items_that_a_model_lacks_are_left_out_of_pairs(tmp_path, monkeypatch):
    """Models of a task are compared on what all of them have."""
    scores = SCORES | {"post": [1, 0]}
    table = run(tmp_path, Fake(scores), monkeypatch).table()
    assert table.mean("one", "direct").items == 2


def test_digests_tell_settings_apart(tmp_path):
    """Nothing is found under another digest."""
    one, two = digest_of({"a": 1}), digest_of({"a": 2})
    assert one != two
    assert Results(tmp_path).find("m", "t", one) is None


def test_ten_kills_changed_nothing():
    """The committed run of `studies.evaluation.kills`: killed on the way, continued, same files."""
    path = Path(__file__).parents[2] / "benchmarks/results/evaluation-kills.json"
    record = json.loads(path.read_text("utf-8"))
    assert record["kills"] == len(record["kept_after_each_kill"]) >= 10
    assert record["kept_after_each_kill"] == sorted(record["kept_after_each_kill"])
    assert record["kept_after_each_kill"][-1] < record["cells"]
    assert len(record["same_files"]) == 4
    assert all(record["same_files"].values())
