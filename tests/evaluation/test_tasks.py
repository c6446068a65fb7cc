"""Tasks of our own: what a completion is taken for."""

import pytest

from paramdelta.errors import UsageError
from paramdelta.evaluation import tasks
from paramdelta.evaluation.harness import _shares


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("so \\boxed{3}", "3"),
        ("\\boxed{1} no, \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{3", None),
        ("3", None),
    ],
)
def test_the_last_boxed_expression(text, inner):
    """With braces inside it."""
    assert tasks.boxed(text) == inner


def test_a_function_that_is_continued_or_repeated():
    """Both forms of an answer give the whole function."""
    prompt = "def f(x):\n"
    for text in ("    return x\n```\nDone.", "```python\ndef f(x):\n    return x\n```"):
        scope = {}
        exec(tasks.completed(prompt, text), scope)
        assert scope["f"](3) == 3


def test_questions_from_a_file(tmp_path):
    """A list, or a mapping of sets; anything else is refused."""
    path = tmp_path / "q.json"
    path.write_text('{"a": [{"question": "x", "answer": 1}], "b": []}')
    assert tasks.questions(path, ("a",)) == [{"question": "x", "answer": "1"}]
    assert tasks.question({"answer": "1"}, " 1\n") == 1
    assert tasks.question({"answer": "1"}, "1.") == 0
    for text in ('{"a": []', '[{"question": "x"}]', "[3]", '{"c": []}'):
        path.write_text(text)
        with pytest.raises(UsageError) as caught:
            tasks.questions(path, ("a",))
        assert caught.value.code == "invalid-questions"


def test_a_limit_is_spread_over_subjects():
    """Evenly, and no more than there are."""
    assert _shares({"a": 5, "b": 1, "c": 5}, 6) == {"a": 3, "b": 1, "c": 2}
    assert _shares({"a": 2}, 9) == {"a": 2}
    assert _shares({"a": 2}, None) == {"a": 2}
