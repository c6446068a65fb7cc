"""Writes the tables of docs/vocabulary.md; the prose around the marks is written by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies.transfer.page import table

_MARK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def attempts(result: dict[str, Any], case: str) -> str:
    """Every attempt on one case."""
    rows = []
    for record in result["attempts"]:
        if record["case"] != case:
            continue
        mark = "**" if record["tool"] == "paramdelta" else ""
        start = [f"{mark}{record['tool']}{mark}", _cell(record["what"])]
        f = record.get("figures")
        if f is None:
            rows.append([*start, f"exit {record['status']}", *["–"] * 8])
            continue
        rows.append(
            [
                *start,
                " × ".join(map(str, f["embedding"])),
                *(_share(f[key]) for key in ("shared", "domain", "chat", "same_text")),
                *(_yes(f[key]) for key in ("template", "special", "stops", "fits")),
            ]
        )
    return table(HEAD, rows)


HEAD = [
    "",
    "asked for",
    "embedding",
    "shared rows right",
    "domain rows kept",
    "chat rows right",
    "domain texts cut as before",
    "template works",
    "chat tokens special",
    "turn's end stops",
    "ids fit",
]


def _share(value: list[int]) -> str:
    right, of = value
    return "–" if of == 0 else f"{right} / {of}"


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"


def errors(result: dict[str, Any]) -> str:
    """Every error text, with where it appeared; sizes stand as n and m."""
    places: dict[str, dict[str, list[str]]] = {}
    for record in result["attempts"]:
        if record["status"]:
            line = re.sub(r"\(\d+, \d+\)", "(n, m)", record["error"])
            what = f"{record['tool']}, {_cell(record['what'])}"
            places.setdefault(line, {}).setdefault(what, []).append(record["case"])
    rows = [
        [f"`{_cell(line)}`", what, ", ".join(cases)]
        for line, found in places.items()
        for what, cases in found.items()
    ]
    return table(["last line", "asked for", "cases"], rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def best(result: dict[str, Any]) -> str:
    """For every case: how many of mergekit's attempts ran, the best of them, and paramdelta."""
    rows = []
    for case, about in result["cases"].items():
        records = [r for r in result["attempts"] if r["case"] == case]
        if not records:
            continue
        theirs = [r for r in records if r["tool"] == "mergekit"]
        ran = [r for r in theirs if r["status"] == 0]
        right = [r for r in ran if _rows_right(r)]
        whole = [r for r in ran if r["figures"]["all_right"]]
        ours = next(r for r in records if r["tool"] == "paramdelta")
        rows.append(
            [
                case,
                about["what"],
                f"{len(ran)} of {len(theirs)}",
                f"{len(right)}",
                f"{len(whole)}",
                _yes("figures" in ours and _rows_right(ours)),
                _yes("figures" in ours and ours["figures"]["all_right"]),
            ]
        )
    head = [
        "case",
        "what",
        "mergekit: attempts that ran",
        "with all rows right",
        "with everything right",
        "paramdelta: all rows right",
        "everything right",
    ]
    return table(head, rows)


def _rows_right(record: dict[str, Any]) -> bool:
    f = record["figures"]
    return f["others"] and all(f[k][0] == f[k][1] for k in ("shared", "domain", "chat"))


def circumstances(result: dict[str, Any]) -> str:
    """What was run, and with what."""
    rows = [["command", f"`{result['command']}`"]]
    rows += [[name, version] for name, version in result["versions"].items()]
    rows += [
        [f"rows of {case}", ", ".join(f"{role} {count}" for role, count in about["rows"].items())]
        for case, about in result["cases"].items()
    ]
    return table(["", ""], rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "best": best,
    "errors": errors,
    "circumstances": circumstances,
    **{
        case: lambda result, case=case: attempts(result, case)
        for case in ("appended", "between", "words", "padded", "padding", "renamed")
    },
}


def filled(page: str, result: dict[str, Any]) -> str:
    """The page with every table made anew."""
    return _MARK.sub(lambda m: f"{m[1]}{TABLES[m[2]](result)}{m[3]}", page)


def write(path: Path, result: dict[str, Any]) -> None:
    """Make the tables of the page anew, if there is a page."""
    if path.exists():
        path.write_text(filled(path.read_text(encoding="utf-8"), result), encoding="utf-8")
