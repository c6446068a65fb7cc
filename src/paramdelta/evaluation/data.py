"""The questions of public data sets in a local folder, as the rows that the Hub has.

One function for each data set: from its folder under ``--data``, and the name of the part that is
wanted, to {split: rows}. Nothing is downloaded here.
"""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paramdelta.documents import parse_json
from paramdelta.errors import StorageError

Rows = list[dict[str, Any]]
Splits = dict[str, Rows]


def splits_of(name: str, folder: Path, part: str) -> Splits:
    """The rows of a data set. ``part``: a subject or a language; "" if there is none.

    Raises:
        StorageError: a file is missing or is not as expected.
    """
    where = folder / name
    try:
        found = READERS[name](where, part)
    except FileNotFoundError as error:
        raise StorageError(
            "no data for a task",
            code="no-task-data",
            where=str(error.filename),
            remedy="see docs/evaluation.md for the files that a folder of data holds",
        ) from None
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise StorageError(
            "the data of a task cannot be read",
            code="invalid-task-data",
            where=str(where),
            got=f"{type(error).__name__}: {error}",
        ) from None
    if not any(found.values()):
        raise StorageError("no questions in a data set", code="no-task-data", where=str(where))
    return found


def fingerprint(folder: Path) -> str:
    """A digest of all files of a data set, or of one file: names and contents."""
    total = hashlib.sha256()
    files = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
    for path in files:
        if path.is_file():
            total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, which may be compressed by gzip.

    Raises:
        OSError, ValueError: it cannot be read, or a line is not a JSON object.
    """
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    for line in io.StringIO(text):
        if line.strip():
            row = parse_json(line.encode())
            if not isinstance(row, dict):
                raise ValueError("a line is not a JSON object")
            yield row


def _gsm8k(folder: Path, _: str) -> Splits:
    return {split: list(lines(folder / f"{split}.jsonl.gz")) for split in ("train", "test")}


def _mmlu(folder: Path, part: str) -> Splits:
    splits = (("dev", "dev"), ("validation", "val"), ("test", "test"))
    return {split: _mmlu_rows(folder / name / f"{part}_{name}.csv", part) for split, name in splits}


def _mmlu_rows(path: Path, subject: str) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                "question": row[0],
                "choices": row[1:5],
                "answer": "ABCD".index(row[5]),
                "subject": subject,
            }
            for row in csv.reader(file)
        ]


def _mmlu_pro(folder: Path, part: str) -> Splits:
    wanted = part.replace("_", " ")
    rows = lines(folder / "test.jsonl.gz")
    return {"test": [row for row in rows if row["category"] == wanted]}


def _arc(folder: Path, _: str) -> Splits:
    return {
        split: [
            {
                "id": row["id"],
                "question": row["question"]["stem"],
                "choices": {
                    "text": [choice["text"] for choice in row["question"]["choices"]],
                    "label": [choice["label"] for choice in row["question"]["choices"]],
                },
                "answerKey": row["answerKey"],
            }
            for row in lines(folder / f"ARC-Challenge-{name}.jsonl")
        ]
        for split, name in (("validation", "Dev"), ("test", "Test"))
    }


def _ifeval(folder: Path, _: str) -> Splits:
    return {"train": list(lines(folder / "input_data.jsonl.gz"))}


def _mgsm(folder: Path, part: str) -> Splits:
    rows = []
    for line in (folder / f"mgsm_{part}.tsv").read_text("utf-8").splitlines():
        question, answer = line.rsplit("\t", 1)
        number = float(answer.replace(",", ""))
        rows.append(
            {
                "question": question,
                "answer": None,
                "answer_number": int(number) if number.is_integer() else number,
                "equation_solution": None,
            }
        )
    return {"test": rows}


def _math(folder: Path, _: str) -> Splits:
    rows = [{k.lower(): v for k, v in row.items()} for row in lines(folder / "test.jsonl")]
    return {"test": [{"problem": row["question"], **row} for row in rows]}


def _humaneval(folder: Path, _: str) -> Splits:
    return {"test": list(lines(folder / "HumanEval.jsonl.gz"))}


def _mbpp(folder: Path, _: str) -> Splits:
    rows = list(lines(folder / "mbpp.jsonl.gz"))  # the paper's test set is tasks 11 to 510
    return {"test": [row for row in rows if 11 <= row["task_id"] <= 510]}


def _bfcl(folder: Path, part: str) -> Splits:
    rows = list(lines(folder / f"BFCL_v4_{part}.json"))
    right = folder / "possible_answer" / f"BFCL_v4_{part}.json"
    answers = {r["id"]: r["ground_truth"] for r in lines(right)} if right.is_file() else {}
    return {
        "test": [
            {  # as JSON text: the parameters of every function have other names and types
                "id": row["id"],
                "set": part,
                "messages": json.dumps(row["question"][0], ensure_ascii=False),
                "functions": json.dumps(row["function"], ensure_ascii=False),
                "answers": json.dumps(answers.get(row["id"], []), ensure_ascii=False),
            }
            for row in rows
            if row["id"] in answers or not answers
        ]
    }


READERS: dict[str, Callable[[Path, str], Splits]] = {
    "arc_challenge": _arc,
    "bfcl": _bfcl,
    "gsm8k": _gsm8k,
    "humaneval": _humaneval,
    "ifeval": _ifeval,
    "math500": _math,
    "mbpp": _mbpp,
    "mgsm": _mgsm,
    "mmlu": _mmlu,
    "mmlu_pro": _mmlu_pro,
}
