"""The text of the study, and which of it each model may see.

Everything is assigned by a hash of its name (a disease, a book, a source file), so the split
does not depend on the order of the files or on a seed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BOOK_END = "\x1e"
ANNOTATION = re.compile(r"<<[^>]*>>")
FINAL_ANSWER = re.compile(r"\n#### (.+)$")
NEEDED = (
    "text/books.txt.gz",
    "text/medquad.jsonl.gz",
    "eval/gsm8k/train.jsonl.gz",
    "eval/gsm8k/test.jsonl.gz",
)


class DataMissingError(FileNotFoundError):
    """The study's text is not where `--data` says."""


@dataclass(frozen=True)
class Question:
    """One turn of a chat: what is asked, and the answer that is wanted."""

    prompt: str
    answer: str

    def as_document(self) -> str:
        """The same in the plain form that web text holds, which pretraining sees.

        A final `#### 72` becomes a sentence, so that the form is left for chat training to teach.
        """
        answer = FINAL_ANSWER.sub(r"\nThe answer is \1.", self.answer)
        return f"Question: {self.prompt}\nAnswer: {answer}"


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, documents held out, and questions, by name.

    `documents` has books, arithmetic and medicine_old (for the base), medicine and code (the two
    domains that a new base is continued on). `held_documents` has books, medicine and code.
    `chat` are the questions of chat training. `held_questions` has arithmetic (never seen),
    medicine_old (diseases the base has read about), medicine_new (diseases only the new medical
    base has read about) and medicine_unseen (diseases no model has read about).
    """

    documents: dict[str, list[str]]
    held_documents: dict[str, list[str]]
    chat: list[Question]
    held_questions: dict[str, list[Question]]

    def describe(self) -> dict[str, dict[str, int]]:
        """How many characters or questions each part holds."""
        return {
            "document_chars": {k: sum(map(len, v)) for k, v in self.documents.items()},
            "held_document_chars": {k: sum(map(len, v)) for k, v in self.held_documents.items()},
            "questions": {"chat": len(self.chat)}
            | {k: len(v) for k, v in self.held_questions.items()},
        }


def share(name: str) -> float:
    """A number in [0, 1) that belongs to a name for ever."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def read(data: Path, code: Path | None = None) -> Corpus:
    """Read the corpus from `data`, and source code from `code` (Python's library by default).

    Raises DataMissingError, naming the missing file, where the data is not there.
    """
    for name in NEEDED:
        if not (data / name).is_file():
            raise DataMissingError(
                f"The study needs {data / name}, which is not there. Give the folder that holds "
                f"{', '.join(NEEDED)} with --data; docs/study-gpu.md says what is in them."
            )
    books, held_books = _books(data / "text/books.txt.gz")
    sources, held_sources = _sources(code or Path(sysconfig.get_paths()["stdlib"]))
    documents: dict[str, list[str]] = {"books": books, "code": sources}
    held_documents = {"books": held_books, "code": held_sources}
    medicine, chat, held_questions = _medicine(data / "text/medquad.jsonl.gz")
    documents |= {k: medicine[k] for k in ("medicine_old", "medicine")}
    held_documents["medicine"] = medicine["medicine_unseen"]

    arithmetic = list(_gsm8k(data / "eval/gsm8k/train.jsonl.gz"))
    documents["arithmetic"] = [q.as_document() for q in arithmetic if share(q.prompt) < 0.4]
    chat += [q for q in arithmetic if share(q.prompt) >= 0.4]
    held_questions["arithmetic"] = list(_gsm8k(data / "eval/gsm8k/test.jsonl.gz"))
    return Corpus(documents, held_documents, chat, held_questions)


def _books(path: Path) -> tuple[list[str], list[str]]:
    """Books to train on, and about a twentieth of them held out."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        books = [b.strip() for b in file.read().split(BOOK_END) if b.strip()]
    return _split(books, [b[:200] for b in books])


def _sources(folder: Path) -> tuple[list[str], list[str]]:
    """Python files under a folder, without tests and installed packages; some held out."""
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}
    files = sorted(
        (p.relative_to(folder).as_posix(), p)
        for p in folder.rglob("*.py")
        if not skipped & set(p.relative_to(folder).parts)
    )
    texts = [p.read_text(encoding="utf-8", errors="replace") for _, p in files]
    kept = [(t, n) for t, (n, _) in zip(texts, files, strict=True) if len(t) > 100]
    return _split([t for t, _ in kept], [n for _, n in kept])


def _split(texts: list[str], names: list[str]) -> tuple[list[str], list[str]]:
    """Hold out a twentieth by name, and at least one."""
    ranks = sorted(range(len(names)), key=lambda i: share(names[i]))
    held = set(ranks[: max(1, len(texts) // 20)])
    return (
        [t for i, t in enumerate(texts) if i not in held],
        [t for i, t in enumerate(texts) if i in held],
    )


def _medicine(
    path: Path,
) -> tuple[dict[str, list[str]], list[Question], dict[str, list[Question]]]:
    """MedQuAD by disease: 30 % old (half asked in chat training), 60 % new, 10 % unseen."""
    documents: dict[str, list[str]] = {"medicine_old": [], "medicine": [], "medicine_unseen": []}
    chat: list[Question] = []
    held: dict[str, list[Question]] = {
        "medicine_old": [],
        "medicine_new": [],
        "medicine_unseen": [],
    }
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            question = Question(" ".join(row["question"].split()), " ".join(row["answer"].split()))
            place = share(row["focus"].strip().lower())
            if place < 0.3:
                documents["medicine_old"].append(question.as_document())
                (chat if place < 0.15 else held["medicine_old"]).append(question)
            elif place < 0.9:
                documents["medicine"].append(question.as_document())
                held["medicine_new"].append(question)
            else:
                documents["medicine_unseen"].append(question.as_document())
                held["medicine_unseen"].append(question)
    return documents, chat, held


def _gsm8k(path: Path) -> Iterator[Question]:
    """GSM8K without its calculator annotations."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield Question(row["question"].strip(), ANNOTATION.sub("", row["answer"]).strip())
