"""The GPU study at a tiny size, on a CPU and on text made up here."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from studies.gpu import delta  # noqa: E402 (torch first: without it there is nothing to test)
from studies.gpu.__main__ import main  # noqa: E402
from studies.gpu.corpus import DataMissingError, Question, read  # noqa: E402
from studies.gpu.decode import Decoder  # noqa: E402
from studies.gpu.experiment import ALPHAS, PARAMDELTA, Experiment, transfer  # noqa: E402
from studies.gpu.sizes import TINY  # noqa: E402
from studies.gpu.tokens import (  # noqa: E402
    ASSISTANT,
    BEGIN,
    END,
    NOT_LEARNED,
    USER,
    Chat,
    chat_rows,
)
from studies.gpu.training import Trainer  # noqa: E402

pytestmark = pytest.mark.hf

WORDS = ["the", "a", "cat", "dog", "sees", "hears", "old", "red", "house", "tree"]
SIZE = replace(
    TINY,
    hidden=32,
    layers=2,
    heads=2,
    mlp=64,
    vocabulary=600,
    length=128,
    rows=8,
    base_steps=12,
    chat_steps=6,
    continuations=(4,),
    scored=8,
    answered=2,
    answer_tokens=24,
    tokenizer_chars=200_000,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of the study's formats, of a few kilobytes."""
    folder = tmp_path_factory.mktemp("data")
    words = random.Random(0)

    def sentence() -> str:
        return " ".join(words.choices(WORDS, k=8))

    def write(name: str, text: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))

    write(
        "text/books.txt.gz",
        "\n\x1e\n".join(". ".join(sentence() for _ in range(60)) * 2 for _ in range(20)),
    )
    rows = [
        {"source": "S", "focus": f"disease {n}", "question": f"What is disease {n} ?"}
        | {"answer": f"Disease {n} is {sentence()}."}
        for n in range(300)
    ]
    write("text/medquad.jsonl.gz", "\n".join(map(json.dumps, rows)))
    for part in ("train", "test"):
        sums = [(words.randrange(50), words.randrange(50)) for _ in range(60)]
        lines = [
            {"question": f"What is {a} + {b}?", "answer": f"It is <<{a}+{b}>>it.\n#### {a + b}"}
            for a, b in sums
        ]
        write(f"eval/gsm8k/{part}.jsonl.gz", "\n".join(map(json.dumps, lines)))
    code = folder / "code"
    code.mkdir()
    for n in range(20):
        (code / f"m{n}.py").write_text(
            "".join(f"def f{k}(x):\n    return x + {n}\n" for k in range(40))
        )
    return folder


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """The results of a whole run, and the file they were written to."""
    out = tmp_path_factory.mktemp("out") / "results.json"
    corpus = read(data, data / "code")
    experiment = Experiment(corpus, SIZE, torch.device("cpu"), out, compiled=False)
    experiment.run([0, 1], None)
    return json.loads(out.read_text(encoding="utf-8")), out


def test_a_run_measures_every_model_of_every_new_base(results: tuple[dict, Path]) -> None:
    """Two seeds and two domains give four new bases, each with every mix, control and norm."""
    found, _ = results
    assert {(c["domain"], c["seed"]) for c in found["cells"]} == {
        (d, s) for d in ("medicine", "code") for s in (0, 1)
    }
    names = {"new", "direct", "random", "permuted"} | {f"alpha {a}" for a in ALPHAS}
    for cell in found["cells"]:
        assert set(cell["scores"]) == names
        assert all(0 <= s["accuracy"] <= 1 for m in cell["scores"].values() for s in m.values())
        assert cell["norms"]["delta"] > 0
        assert abs(cell["norms"]["cosine_delta_shift"]) <= 1
    assert [m["model"] for m in found["models"]].count("post") == 2
    assert {line["seeds"] for line in found["summary"]} == {2}


def test_the_report_draws_the_plots_and_fills_the_page(
    results: tuple[dict, Path], tmp_path: Path
) -> None:
    """Plots and tables come from the file alone; the page's own words stay."""
    pytest.importorskip("matplotlib")
    from studies.gpu.report import report

    _, out = results
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- transfer -->\nold\n<!-- /transfer -->\nafter\n", encoding="utf-8")
    report(out, page, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| medicine | 4 | " in text
    assert {p.name for p in tmp_path.glob("*.png")} == {"alpha.png", "loss.png", "shift.png"}


def test_the_page_is_what_its_results_say() -> None:
    """The tables of docs/study-gpu.md are those that the report makes from results.json."""
    pytest.importorskip("matplotlib")
    from studies.gpu.report import filled

    docs = Path(__file__).parents[3] / "docs"
    found = json.loads((docs / "study-gpu" / "results.json").read_text(encoding="utf-8"))
    page = (docs / "study-gpu.md").read_text(encoding="utf-8")
    assert "post, unchanged" in page
    assert filled(page, found) == page


def test_missing_data_is_said_plainly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command names the file that is missing and the option to give, and ends with 2."""
    monkeypatch.setattr("sys.argv", ["study", "--data", str(tmp_path), "--device", "cpu"])
    assert main() == 2
    assert "books.txt.gz" in capsys.readouterr().err
    with pytest.raises(DataMissingError, match="--data"):
        read(tmp_path)


def test_no_held_out_text_is_trained_on(data: Path) -> None:
    """What a model is measured on as unseen is in no document and in no chat."""
    corpus = read(data, data / "code")
    trained = {t for d in corpus.documents.values() for t in d}
    assert not trained & {t for d in corpus.held_documents.values() for t in d}
    asked = {q.prompt for q in corpus.chat}
    for name in ("medicine_old", "medicine_new", "medicine_unseen"):
        assert not asked & {q.prompt for q in corpus.held_questions[name]}
    old = set(corpus.documents["medicine_old"])
    assert not old & {q.as_document() for q in corpus.held_questions["medicine_new"]}


def test_documents_do_not_show_the_form_that_chat_teaches() -> None:
    """The final line of GSM8K becomes a sentence in a document."""
    document = Question("How many?", "Two and two.\n#### 4").as_document()
    assert document == "Question: How many?\nAnswer: Two and two.\nThe answer is 4."


def test_only_answers_are_learned() -> None:
    """Labels are the answer and its end, each at the position before it."""
    chats = [Chat([BEGIN, USER, 9, ASSISTANT], [7, END]), Chat([BEGIN, USER, ASSISTANT], [8, END])]
    rows = chat_rows(chats, 12, packed=True)
    assert len(rows) == 1
    learned = [(int(i), int(t)) for i, t in enumerate(rows.labels[0]) if t != NOT_LEARNED]
    assert learned == [(3, 7), (4, END), (8, 8), (9, END)]
    assert len(chat_rows(chats, 12, packed=False)) == 2


def test_decoding_step_by_step_says_what_whole_rows_say() -> None:
    """The cached step takes the same tokens as the argmax over the whole row so far."""
    trainer = Trainer(SIZE, torch.device("cpu"), compiled=False)
    state = trainer.fresh(3)
    chats = [
        Chat([BEGIN, USER, 40, 41, ASSISTANT], [END]),
        Chat([BEGIN, USER, 5, ASSISTANT], [END]),
    ]
    answers = Decoder(SIZE, chats, trainer.device).answers(state)
    trainer.model.load_state_dict(state)
    for chat, (said, _) in zip(chats, answers, strict=True):
        row = list(chat.prompt)
        for token in said[:10]:
            with torch.no_grad():
                assert int(trainer.model(torch.tensor([row]))[0, -1].argmax()) == token
            row.append(token)


def test_the_formula_and_its_controls() -> None:
    """With base' = base the formula gives post; controls keep the norm of every tensor."""
    trainer = Trainer(SIZE, torch.device("cpu"), compiled=False)
    base, post = trainer.fresh(0), trainer.fresh(1)
    change = delta.difference(post, base)
    again = delta.add(base, change, 1.0)
    assert all(torch.allclose(again[n], post[n], atol=1e-6) for n in post)
    assert all(torch.equal(delta.add(base, change, 0.0)[n], base[n]) for n in base)
    for control in (delta.random_like(change, 0), delta.permuted(change, 0)):
        for name, tensor in control.items():
            assert torch.allclose(tensor.norm(), change[name].norm(), rtol=1e-4)
        assert abs(delta.cosine(control, change)) < 0.1
    assert delta.cosine(change, change) == pytest.approx(1.0)


def test_direct_recovers_all_of_itself_and_the_new_base_nothing(
    results: tuple[dict, Path],
) -> None:
    """The two ends of the scale of transfer."""
    scores = results[0]["cells"][0]["scores"]
    assert transfer(scores["direct"], scores["new"], scores["direct"])["recovered"] == 1
    assert transfer(scores["new"], scores["new"], scores["direct"])["recovered"] == 0
    assert PARAMDELTA in scores
