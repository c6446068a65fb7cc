"""With lm-evaluation-harness: known answers, and models of the shipped lineage.

`make test-evaluate` installs the harness and runs all questions; without it, these are skipped.
"""

import os
from pathlib import Path

import pytest

from paramdelta import mix
from paramdelta.demo.tour import LINEAGE, recipe
from paramdelta.evaluation.evaluator import evaluate
from paramdelta.evaluation.suite import read_suite
from tests.evaluation import golden

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

DATA = Path(__file__).parents[3] / "shared/data/eval"
WHOLE = bool(os.environ.get("PARAMDELTA_WHOLE_EVALUATION"))
SUITE = read_suite("paper")
SCORED = [task.name for task in SUITE.tasks if task.name != "ifeval"]
# Their published rules count every answer wrong.
UNANSWERABLE = {"bfcl": 2}
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no data sets beside the repository")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Nothing is fetched."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="module")
def harness():
    """The harness on the local data."""
    from paramdelta.evaluation.harness import Harness

    return Harness(SUITE, DATA, 8)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", SCORED)
def test_known_answers(harness, name):
    """Gold answers score 100 %, and wrong ones 0."""
    (task,) = (task for task in SUITE.tasks if task.name == name)
    limit = None if WHOLE else 12

    def wrong(task, document):
        return "[nothing(a=1)]" if task == "bfcl" else "I do not know."

    right = harness.ask(golden.model(name, golden.right), False, task, limit)
    missed = [sample.item for sample in right.samples if sample.score != 1]
    assert len(missed) == (UNANSWERABLE.get(name, 0) if WHOLE else 0), missed
    assert right.samples
    none = harness.ask(golden.model(name, wrong), False, task, limit)
    assert {sample.score for sample in none.samples} == {0}


@needs_data
@pytest.mark.slow
def test_instructions_that_are_followed(harness):
    """IFEval: an answer that follows every instruction, and one that follows none."""
    (task,) = (task for task in SUITE.tasks if task.name == "ifeval")

    def answer(_, document):
        kinds = document["instruction_id_list"]
        return "plain words" if kinds == ["punctuation:no_comma"] else "a, b"

    found = harness.ask(golden.model("ifeval", answer), False, task, 60)
    scores = {s.answer: set() for s in found.samples}
    for sample in found.samples:
        scores[sample.answer].add(sample.score)
    assert scores["plain words"] == {1}
    assert 0 in scores["a, b"]


@pytest.mark.slow
@pytest.mark.hf
def test_live_and_from_disk_are_the_same(tmp_path):
    """The mix in memory and its written folder give the same answers, question by question."""
    mix(recipe("plain", 1.0), tmp_path / "written")
    models = ("paramdelta", f"written={tmp_path / 'written'}", f"direct={LINEAGE / 'direct'}")
    found = evaluate(recipe("plain", 1.0), "demo", models=models, limit=4)
    assert found.failures == ()
    for row in found.answers.values():
        assert row["paramdelta"].samples == row["written"].samples
    table = found.table()
    assert table.average("direct").value > 0.6
    assert table.average("paramdelta").value > 0.6
