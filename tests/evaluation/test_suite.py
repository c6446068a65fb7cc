"""Suites: the shipped ones, and files that are refused."""

import pytest

from paramdelta.errors import UsageError
from paramdelta.evaluation.suite import read_suite, suites


@pytest.mark.parametrize("name", sorted(suites()))
def test_shipped_suites_can_be_read(name):
    """Each has tasks, under its own name."""
    suite = read_suite(name)
    assert suite.name == name
    assert suite.tasks


def test_a_suite_of_ones_own(tmp_path):
    """A copied and changed file works; questions lie beside it."""
    (tmp_path / "mine.yaml").write_text(
        "tasks:\n  a: {own: questions, data: a.json, sets: [x], most: 5}\n"
        "  b: {harness: gsm8k, metric: exact_match, settings: {num_fewshot: 2}}\n"
        "missing: {c: why}\n"
    )
    suite = read_suite(tmp_path / "mine.yaml")
    assert (suite.name, suite.folder, suite.missing) == ("mine", tmp_path, {"c": "why"})
    assert suite.tasks[0].sets == ("x",)
    assert suite.tasks[1].settings == {"num_fewshot": 2}


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("", "no mapping of tasks"),
        ("tasks: [a]", "no mapping of tasks"),
        ("tasks: {a: 1}", "not a mapping"),
        ("tasks: {a: {own: questions}}\nmore: 1", "unknown key more"),
        ("tasks: {a: {own: questions, harness: b}}", "either harness or own"),
        ("tasks: {a: {metric: b}}", "either harness or own"),
        ("tasks: {a: {own: telepathy}}", "own is one of"),
        ("tasks: {a: {own: questions, wat: 1}}", "unknown key wat"),
        ("tasks: {../a: {own: questions}}", "a name has"),
        ("tasks: {a: {own: questions, data: ../b}}", "leads out"),
        ("tasks: {a: {own: questions, data: /etc/passwd}}", "leads out"),
        ("tasks: {a: {harness: b, folder: ../../c}}", "leads out"),
        ("tasks: {a: {harness: [b]}}", "harness is not text"),
        ("tasks: {a: {own: calls, sets: [../x]}}", "sets is not"),
        ("tasks: {a: {own: calls, most: 0}}", "most is not"),
        ("tasks: {a: {own: calls, most: true}}", "most is not"),
        ("tasks: {a: {own: calls, settings: 3}}", "settings is not"),
        ("tasks: {a: {own: questions}}\nmissing: x", "missing is not"),
        ("tasks: {a: !function os.system}", "not YAML"),
    ],
)
def test_a_file_that_is_not_a_suite_is_refused(tmp_path, text, got):
    """With the place and the reason."""
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_suite(tmp_path / "s.yaml")
    assert caught.value.code == "invalid-suite"
    assert got in caught.value.got


def test_no_such_suite():
    """The error lists those that there are."""
    with pytest.raises(UsageError) as caught:
        read_suite("papre")
    assert caught.value.code == "no-such-suite"
    assert "paper" in caught.value.expected
