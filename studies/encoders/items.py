"""The cluster of every test item, so that the analysis needs the results only and not the data."""

from __future__ import annotations

import json
from pathlib import Path

from studies.encoders.data import SETS, Corpus


def clusters(corpus: Corpus) -> dict[str, list[int]]:
    """{set: the number of each item's file, disease or task}, numbers in the order of names."""
    found = {}
    for name in SETS:
        groups = [pair.group for pair in corpus.test[name]]
        numbers = {group: number for number, group in enumerate(sorted(set(groups)))}
        found[name] = [numbers[group] for group in groups]
    return found


def write_items(corpus: Corpus, folder: Path, stamp: dict) -> None:
    """Write items.json, unless it exists."""
    path = folder / "items.json"
    if not path.exists():
        path.write_text(json.dumps({"groups": clusters(corpus), **stamp}) + "\n", encoding="utf-8")
