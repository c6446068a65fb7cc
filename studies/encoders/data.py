"""The pairs of the study: a query, the document it should find, and the group both belong to.

Nothing here depends on a seed. Which disease is held out is decided by a hash of its name; the
code that is held out comes from other packages than the code of the training.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import re
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

SETS = ("code", "medical", "humaneval", "mbpp")
TEST_SHARE = 0.15  # of the diseases
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
NEEDED = ("text/medquad.jsonl.gz", "eval/humaneval/HumanEval.jsonl.gz", "eval/mbpp/mbpp.jsonl.gz")


class DataMissingError(FileNotFoundError):
    """A file of the study's data is not where `--data` says."""


@dataclass(frozen=True)
class Pair:
    """A query and the document that answers it. `group` is a file or a disease."""

    query: str
    document: str
    group: str


@dataclass(frozen=True)
class Corpus:
    """Pairs to train on ("code", "medical") and pairs to measure on (all of SETS), by name."""

    train: dict[str, list[Pair]]
    test: dict[str, list[Pair]]

    def describe(self) -> dict[str, dict]:
        """Pairs, groups and SHA-256 of every part."""
        parts = {f"train {name}": pairs for name, pairs in self.train.items()}
        parts |= {f"test {name}": pairs for name, pairs in self.test.items()}
        return {
            name: {
                "pairs": len(pairs),
                "groups": len({pair.group for pair in pairs}),
                "sha256": hashlib.sha256(
                    json.dumps([asdict(pair) for pair in pairs]).encode()
                ).hexdigest(),
            }
            for name, pairs in parts.items()
        }


def share(name: str) -> float:
    """A number in [0, 1) computed from a name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def read_corpus(
    data: Path, wheels: Iterable[Path], items: int, per_file: int, per_disease: int
) -> Corpus:
    """Read all pairs.

    `data` is the folder with the files of NEEDED, `wheels` hold the code that is held out.
    Raises DataMissingError, naming the missing file.
    """
    for name in NEEDED:
        if not (data / name).is_file():
            raise DataMissingError(
                f"The study needs {data / name}, which does not exist. Give the folder that "
                f"contains {', '.join(NEEDED)} with --data."
            )
    library = unique(
        pair for path, source in library_sources() for pair in code_pairs(source, path)
    )
    others = unique(
        pair
        for wheel in wheels
        for path, source in wheel_sources(wheel)
        for pair in code_pairs(source, path)
    )
    known = {pair.query for pair in library} | {pair.document for pair in library}
    others = [pair for pair in others if pair.query not in known and pair.document not in known]
    medical = unique(medical_pairs(read_lines(data / NEEDED[0])))
    held = [pair for pair in medical if share("disease " + pair.group) < TEST_SHARE]
    train = [pair for pair in medical if share("disease " + pair.group) >= TEST_SHARE]
    return Corpus(
        {"code": library, "medical": train},
        {
            "code": sample(others, items, 1, per_file),
            "medical": sample(held, items, 2, per_disease),
            "humaneval": unique(humaneval_pairs(read_lines(data / NEEDED[1]))),
            "mbpp": unique(mbpp_pairs(read_lines(data / NEEDED[2]))),
        },
    )


def unique(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs whose query and document occurred in no earlier pair, in a fixed order."""
    seen: set[str] = set()
    kept = []
    for pair in sorted(pairs, key=lambda p: (p.group, p.query, p.document)):
        if pair.query not in seen and pair.document not in seen:
            kept.append(pair)
        seen |= {pair.query, pair.document}
    return kept


def sample(pairs: Iterable[Pair], items: int, least: int, most: int) -> list[Pair]:
    """About `items` pairs: `least` to `most` of a group, groups and pairs in hash order."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    chosen: list[Pair] = []
    for group in sorted(groups, key=lambda name: share("order " + name)):
        if len(groups[group]) >= least and len(chosen) < items:
            chosen += sorted(groups[group], key=lambda pair: share(pair.query))[:most]
    return chosen


def library_sources() -> Iterator[tuple[str, str]]:
    """(path, source) of the modules of this Python's standard library, its tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not SKIPPED_FOLDERS.intersection(inside.parts):
            try:
                yield inside.as_posix(), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def wheel_sources(wheel: Path) -> Iterator[tuple[str, str]]:
    """(path, source) of the modules in a wheel, its tests left out. Nothing is imported."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".py") and not SKIPPED_FOLDERS.intersection(name.split("/")):
                yield name, archive.read(name).decode("utf-8", errors="replace")


def code_pairs(source: str, group: str) -> Iterator[Pair]:
    """Docstring → code of every documented function.

    The query is the docstring's first paragraph. The document is the function without its
    docstring and with its name replaced by `f`, so that names alone do not give it away.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            node.body = node.body[1:] if text else node.body
            if len(text.split()) >= 4 and len(node.body) >= 2:
                node.name, node.decorator_list = "f", []
                yield Pair(text, ast.unparse(node), group)


def medical_pairs(rows: Iterable[dict]) -> Iterator[Pair]:
    """MedQuAD: question → answer; the group is the disease."""
    for row in rows:
        if row["focus"] and len(row["answer"].split()) >= 5:
            query = " ".join(row["question"].split())
            yield Pair(query, " ".join(row["answer"].split()), row["focus"].strip().lower())


def humaneval_pairs(rows: Iterable[dict]) -> Iterator[Pair]:
    """HumanEval: the docstring before its examples → the solution, its name replaced by `f`."""
    for row in rows:
        name = row["entry_point"]
        source = row["prompt"] + row["canonical_solution"]
        functions = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
        node = next(node for node in functions if node.name == name)
        text = re.split(r">>>|\n\s*[Ee]xamples?\b|\n\s*For example", ast.get_docstring(node) or "")
        node.body = node.body[1:]
        query = re.sub(rf"\b{name}\b", "f", " ".join(text[0].split()))
        yield Pair(query, re.sub(rf"\b{name}\b", "f", ast.unparse(node)), row["task_id"])


def mbpp_pairs(rows: Iterable[dict]) -> Iterator[Pair]:
    """MBPP's test split (tasks 11 to 510): description → code, its function's name replaced."""
    for row in rows:
        if 11 <= row["task_id"] <= 510:
            name = re.findall(r"def (\w+)\s*\(", row["code"])[-1]
            code = re.sub(rf"\b{name}\b", "f", row["code"].replace("\r\n", "\n")).strip()
            yield Pair(" ".join(row["text"].split()), code, f"MBPP/{row['task_id']}")


def read_lines(path: Path) -> Iterator[dict]:
    """The rows of a gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
