"""Published scores beside those of a run."""

import pytest

from paramdelta.errors import UsageError
from paramdelta.evaluation.reference import read_reference
from paramdelta.evaluation.report import report

READ = {
    "suite": "mine", "limit": None, "models": ["direct"], "mixes": [], "versions": {"a": "1"},
    "scores": {"one": {"direct": {"value": 0.5, "error": 0.1, "items": 4}}}, "average": {},
    "transfer": {}, "differences": [], "notes": {}, "failures": [], "missing": {},
}  # fmt: skip


def test_published_scores_stand_beside_those_of_the_run(tmp_path):
    """With their source, also where the run has none."""
    (tmp_path / "r.yaml").write_text(
        "source: a paper, table 2\nscores: {one: {direct: 61, post: 3.5}}"
    )
    found = read_reference(tmp_path / "r.yaml")
    text = report(READ | {"reference": found.to_dict()})
    assert "From a paper, table 2." in text
    assert "| one, direct | 50.0 ± 10.0 | 61.0 |" in text
    assert "| one, post | – | 3.5 |" in text
    assert "Published" not in report(READ)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "source: x",
        "scores: {}",
        "source: x\nscores: {a: {b: c}}",
        "source: x\nscores: 3",
        "source: x\nscores: {}\nmore: 1",
        "source: 3\nscores: {}",
    ],
)
def test_other_files_are_refused(tmp_path, text):
    """With the form that is expected."""
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_reference(tmp_path / "r.yaml")
    assert caught.value.code == "invalid-reference"
