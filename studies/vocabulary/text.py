"""The text that the tokenizers learn from: novels for the old base, medical answers for the new."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

BOOKS, MEDICINE = "text/books.txt.gz", "text/medquad.jsonl.gz"
HELD = 64  # medical answers that no tokenizer and no model has read


class DataMissingError(Exception):
    """The study's data is not there."""


@dataclass(frozen=True)
class Texts:
    """``general``: what the old tokenizer reads. ``domain``: what it is extended on.

    ``held``: texts of the domain that are only encoded and scored. ``questions``: pairs of a
    question and the beginning of its answer, for conversations.
    """

    general: list[str]
    domain: list[str]
    held: list[str]
    questions: list[tuple[str, str]]


def read(data: Path, characters: int = 4_000_000) -> Texts:
    """A sample of both, of at most that many characters each.

    Raises DataMissingError, naming the file, where the data is not there.
    """
    for name in (BOOKS, MEDICINE):
        if not (data / name).is_file():
            raise DataMissingError(
                f"The study needs {data / name}, which is not there. Give the folder that holds "
                f"{BOOKS} and {MEDICINE} with --data."
            )
    with gzip.open(data / BOOKS, "rt", encoding="utf-8") as file:
        general = [p for p in file.read(characters).split("\n\n") if p.strip()]
    with gzip.open(data / MEDICINE, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    # Every so manieth row: the file is sorted by source.
    rows = [rows[i * 37 % len(rows)] for i in range(len(rows))]
    answers = [" ".join(row["answer"].split()) for row in rows]
    domain: list[str] = []
    for answer in answers[HELD:]:
        if characters <= 0:
            break
        domain.append(answer[:characters])
        characters -= len(answer)
    questions = [
        (" ".join(row["question"].split()), answer.split(". ")[0][:160])
        for row, answer in zip(rows, answers, strict=True)
    ]
    return Texts(general, domain, [answer[:2000] for answer in answers[:HELD]], questions)
