"""The files of an evaluation: results.json, report.md, report.html and card.md."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paramdelta.evaluation.card import card
from paramdelta.evaluation.evaluator import Evaluation
from paramdelta.evaluation.page import page
from paramdelta.evaluation.pick import Picked
from paramdelta.evaluation.reference import Reference
from paramdelta.evaluation.report import facts, report
from paramdelta.evaluation.results import write
from paramdelta.evaluation.text import Texts, texts_report


def write_report(
    found: Evaluation,
    picked: Picked | None,
    out: Path | None,
    reference: Reference | None = None,
) -> Mapping[str, Any]:
    """What was found, as plain values; and as files, if there is a folder for them."""
    read = facts(found)
    if picked is not None:
        read["picked"] = picked.to_dict()
    if reference is not None:
        read["reference"] = reference.to_dict()
    if out is not None:
        write(out / "results.json", json.dumps(read, indent=1, ensure_ascii=False) + "\n")
        write(out / "report.md", report(read))
        write(out / "report.html", page(read, found))
        write(out / "card.md", card(read))
    return read


def write_texts(found: Texts, out: Path | None) -> None:
    """text.json and text.md, if there is a folder for them."""
    if out is not None:
        plain = json.dumps(found.to_dict(), indent=1, ensure_ascii=False)
        write(out / "text.json", plain + "\n")
        write(out / "text.md", texts_report(found))
