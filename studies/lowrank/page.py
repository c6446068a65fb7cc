"""Writes the tables of docs/lora.md; the prose around the marks is written by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies.transfer.page import table

_MARK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def ranks(result: dict[str, Any]) -> str:
    """Energy and scores by rank; the exact Δ last."""
    head = ["factors for", "rank", "energy kept, of its modules", "with F32 factors"]
    head += ["of the whole Δ", "adapter", "right on the new base", "right on base"]
    rows = [
        [
            "linear weights" + (" and embedding" if one["embeddings"] else ""),
            str(one["rank"]) + (" (full)" if one["rank"] == result["ranks"][-1]["rank"] else ""),
            f"{100 * one['kept_of_modules']:.2f} %",
            f"{100 * one['kept_of_modules_f32']:.2f} %",
            f"{100 * one['kept_of_all']:.2f} %",
            f"{one['bytes'] / 1e6:.2f} MB",
            *(f"{one['scores'][target]:.0f} %" for target in ("new-base", "base")),
        ]
        for one in result["ranks"]
    ]
    exact = [f"{result['exact'][target]:.0f} %" for target in ("new-base", "base")]
    rows.append(["exact Δ", "–", "100 %", "100 %", "100 %", "–", *exact])
    return table(head, rows)


def energies(result: dict[str, Any]) -> str:
    """What a share of the energy costs."""
    rows = [
        [
            f"`--energy {one['energy']}`",
            f"{one['ranks'][0]} to {one['ranks'][1]}",
            f"{100 * one['kept_of_modules']:.2f} %",
            f"{one['bytes'] / 1e6:.2f} MB",
        ]
        for one in result["energies"]
    ]
    return table(
        ["", "ranks, of at most 128", "energy kept, of the linear weights", "adapter"], rows
    )


def nearness(result: dict[str, Any]) -> str:
    """How near the sketch is to the best, by power iterations."""
    counts = sorted({one["iterations"] for one in result["nearness"]})
    rows = []
    for rank in sorted({one["rank"] for one in result["nearness"]}):
        some = {o["iterations"]: o for o in result["nearness"] if o["rank"] == rank}
        cells = (f"{100 * some[n]['all']:.2f} ({100 * some[n]['least']:.2f}) %" for n in counts)
        rows.append([str(rank), *cells])
    return table(["rank", *(f"q = {n}" for n in counts)], rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "ranks": ranks,
    "energies": energies,
    "nearness": nearness,
}


def filled(text: str, result: dict[str, Any]) -> str:
    """The page with every table made anew."""
    return _MARK.sub(lambda m: f"{m[1]}{TABLES[m[2]](result)}{m[3]}", text)


def write(path: Path, result: dict[str, Any]) -> None:
    """Make the tables of the page anew."""
    path.write_text(filled(path.read_text(encoding="utf-8"), result), encoding="utf-8")
