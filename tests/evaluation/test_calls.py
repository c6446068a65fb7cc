"""Function calls as text: how they are read, and what is right."""

import json
from pathlib import Path

import pytest

from paramdelta.evaluation import calls
from paramdelta.evaluation.data import splits_of
from tests.evaluation import golden

DATA = Path(__file__).parents[3] / "shared/data/eval"
SETS = ("simple_python", "multiple", "parallel", "parallel_multiple", "live_simple", "irrelevance")
# No answer is right by the published rules: a required list has no possible value.
UNANSWERABLE = {"live_simple": ["live_simple_106-63-0", "live_simple_112-68-0"]}
AREA = [
    {
        "name": "geo.area",
        "parameters": {
            "properties": {
                "base": {"type": "integer"},
                "height": {"type": "float"},
                "unit": {"type": "string"},
                "points": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["base", "height"],
        },
    }
]
ANSWER = [
    {
        "geo.area": {
            "base": [10],
            "height": [5.0],
            "unit": ["Square Meters", ""],
            "points": [[1, 2], ""],
        }
    }
]


@pytest.mark.parametrize(
    "text",
    [
        "[geo.area(base=10, height=5)]",
        "geo.area(height=5.0, base=10)",
        "```\n[geo.area(base=10, height=5, unit='square-meters')]\n```",
        "[geo.area(base=2 * 5, height=5)]",
        "[geo.area(base=10, height=5, points=[1, 2])]",
    ],
)
def test_right_calls(text):
    """Order, brackets, optional parameters, case and punctuation do not matter."""
    assert calls.is_right(text, AREA, ANSWER)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The area is 25.",
        "[geo.area(10, 5)]",
        "[geo.area(base=10)]",
        "[geo.area(base=11, height=5)]",
        "[geo.area(base='10', height=5)]",
        "[geo.area(base=True, height=5)]",
        "[geo.area(base=10, height=5, color='red')]",
        "[geo.area(base=10, height=5, points=[2, 1])]",
        "[area(base=10, height=5)]",
        "[geo.area(base=10, height=5), geo.area(base=10, height=5)]",
        "[geo.area(base=10 + 9 ** 9 ** 9, height=5)]",
        "[geo.area(base=1 / 0, height=5)]",
        "[geo.area(base=__import__('os').system('true'), height=5)]",
        "[" * 5000,
        "[f(a=" + "-" * 15_000 + "1)]",
        "[f(a=1)]" * 5000,
    ],
)
def test_wrong_calls(text):
    """Other values, types, names or numbers of calls, and text that is hostile."""
    assert not calls.is_right(text, AREA, ANSWER)


def test_no_call_is_right_where_no_function_fits():
    """BFCL's set "irrelevance"."""
    assert calls.is_right("None of the functions can be used.", AREA, [])
    assert not calls.is_right("[geo.area(base=1, height=2)]", AREA, [])


@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not beside the repository")
@pytest.mark.parametrize("part", SETS)
def test_every_published_answer_is_right(part):
    """BFCL's own answers score 100 %; those of the next question 0."""
    rows = splits_of("bfcl", DATA, part)["test"]
    wrong = []
    for row in rows:
        functions, answers = json.loads(row["functions"]), json.loads(row["answers"])
        if not calls.is_right(golden.calls(answers, functions), functions, answers):
            wrong.append(row["id"])
        assert not calls.is_right("[no_such_function(a=1)]", functions, answers)
    assert wrong == UNANSWERABLE.get(part, [])
