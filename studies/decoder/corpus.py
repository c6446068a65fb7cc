"""The text of the study: school arithmetic for the chat, medical answers and books for reading."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from studies.encoders.data import DataMissingError, read_lines, share

TEST_SHARE = 0.15  # of the diseases and of the books
ANNOTATION = re.compile(r"<<[^>]*>>")
BOOK_END = "\x1e"
NEEDED = (
    "eval/gsm8k/train.jsonl.gz",
    "eval/gsm8k/test.jsonl.gz",
    "text/medquad.jsonl.gz",
    "text/books.txt.gz",
)


@dataclass(frozen=True)
class Question:
    """A question and its answer; `answer` of arithmetic ends in a line "#### number"."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Corpus:
    """What is trained on and what is held out. Medical questions: at most one per disease."""

    chat: list[Question]
    medical: list[str]
    books: list[str]
    test_chat: list[Question]
    test_medical: list[Question]
    test_books: list[str]


def read_corpus(data: Path) -> Corpus:
    """Read everything; raises DataMissingError, naming the missing file."""
    for name in NEEDED:
        if not (data / name).is_file():
            raise DataMissingError(
                f"The study needs {data / name}, which does not exist. Give the folder that "
                f"contains {', '.join(NEEDED)} with --data."
            )
    medical = [
        row for row in read_lines(data / NEEDED[2]) if row["focus"] and row["answer"].strip()
    ]
    with gzip.open(data / NEEDED[3], "rt", encoding="utf-8") as file:
        books = [book.strip() for book in file.read().split(BOOK_END) if book.strip()]
    held = [book for book in books if share("book " + book[:200]) < TEST_SHARE]
    return Corpus(
        chat=arithmetic(read_lines(data / NEEDED[0])),
        medical=[
            f"{question.prompt}\n{question.answer}"
            for row in medical
            if not _held(row)
            for question in [_medical(row)]
        ],
        books=[book for book in books if book not in set(held)],
        test_chat=arithmetic(read_lines(data / NEEDED[1])),
        test_medical=_one_each(row for row in medical if _held(row)),
        test_books=held,
    )


def arithmetic(rows: Iterable[dict]) -> list[Question]:
    """GSM8K without its calculator marks, in the order of the file."""
    return [
        Question(row["question"].strip(), ANNOTATION.sub("", row["answer"]).strip()) for row in rows
    ]


def _medical(row: dict) -> Question:
    return Question(" ".join(row["question"].split()), " ".join(row["answer"].split()))


def _held(row: dict) -> bool:
    return share("disease " + row["focus"].strip().lower()) < TEST_SHARE


def _one_each(rows: Iterable[dict]) -> list[Question]:
    """One question of each disease, the diseases in the order of a hash."""
    chosen: dict[str, dict] = {}
    for row in rows:
        chosen.setdefault(row["focus"].strip().lower(), row)
    return [_medical(chosen[name]) for name in sorted(chosen, key=lambda n: share("order " + n))]
