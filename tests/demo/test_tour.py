"""The shipped lineage: it mixes, it talks, and the Δ comes across."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from paramdelta import mix, verify
from paramdelta.demo import tour
from paramdelta.demo.chat import Answer, Model

pytestmark = pytest.mark.hf


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The plain recipe on the shipped lineage, verified in full."""
    out = tmp_path_factory.mktemp("demo") / "mixed"
    mix(tour.recipe("plain", 1.0), out)
    verify(out, share=1.0)
    return out


def test_an_answer_counts_only_if_it_ends():
    """The right words without an end of turn are not right."""
    assert Answer("yes", ended=True).is_right("yes")
    assert not Answer("yes", ended=False).is_right("yes")
    assert not Answer("yes!", ended=True).is_right("yes")


def test_the_new_base_gets_both(mixed):
    """Facts that only the new base knows, in the form that only post has: most are answered by the
    mix, hardly any by post, none by the new base.
    """
    items = json.loads((tour.LINEAGE / "tasks.json").read_text())["new facts"][:40]
    asked = [item["question"] for item in items]
    right = {}
    for name, place in (
        ("post", tour.LINEAGE / "post"),
        ("new-base", tour.LINEAGE / "new-base"),
        ("mix", mixed),
    ):
        answers = Model(place, tour.LINEAGE / "post").answer(asked)
        pairs = zip(answers, items, strict=True)
        right[name] = sum(answer.is_right(item["answer"]) for answer, item in pairs)
    assert right["new-base"] == 0
    assert right["post"] <= 1
    assert right["mix"] >= 36


def test_shipped_scores_are_what_the_models_score():
    """The scores in the package can be measured again: direct on facts, within two answers."""
    tasks = json.loads((tour.LINEAGE / "tasks.json").read_text())
    shipped = json.loads((tour.LINEAGE / "scores.json").read_text())["direct"]
    model = Model(tour.LINEAGE / "direct", tour.LINEAGE / "post")
    for task in ("new facts", "last"):
        answers = model.answer([item["question"] for item in tasks[task]])
        right = sum(a.is_right(i["answer"]) for a, i in zip(answers, tasks[task], strict=True))
        assert abs(100 * right / len(tasks[task]) - shipped[task]) <= 3


@pytest.mark.slow
def test_param_delta_keeps_nine_tenths_of_direct(mixed):
    """The claim that the demo shows, on all its questions, which no training ever asked."""
    assert tour.score(mixed).efficiency >= 0.9


def test_several_deltas_is_a_recipe(tmp_path):
    """The second recipe of the demo mixes two Δ and verifies."""
    out = mix(tour.recipe("several", 0.5), tmp_path / "out").folder
    verify(out, share=1.0)
    assert len(tour.questions("several")) > len(tour.questions("plain"))
