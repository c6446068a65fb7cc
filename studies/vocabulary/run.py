"""The lineage in every case, put through mergekit and paramdelta: `python -m studies.vocabulary`.

Writes studies/vocabulary/results.json and the tables of docs/vocabulary.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.mergekit import VERSION, ensure_environment
from studies.vocabulary import lineage, mergekit, page, reference, text
from studies.vocabulary.measure import measure
from studies.vocabulary.mergekit import Outcome

RESULTS = Path(__file__).parent / "results.json"
SIZE, MORE = 4000, 600  # tokens of the old tokenizer, and of its extension


def paramdelta(
    case: lineage.Case, folders: dict[str, Path], work: Path, out: Path
) -> tuple[str, Outcome]:
    """Run the command as a user would; what was asked, and how it ended."""
    asked = [word for token in case.graft for word in ("--graft", token)]
    options = ["--post", folders["post"], "--base", folders["base"]]
    options += ["--new-base", folders["new-base"], "--out", out]
    program = Path(sys.executable).with_name("paramdelta")
    command = [program, "mix", *options, *asked]
    done = subprocess.run(command, capture_output=True, text=True)
    error = "" if done.returncode == 0 else mergekit.last_line(done.stderr, work)
    return " ".join(f"`{word}`" for word in asked), Outcome(done.returncode, error)


def examine(
    case: lineage.Case, work: Path, environment: Path, held: list[str]
) -> list[dict[str, Any]]:
    """Every attempt on one case, in order, with what came of it.

    A row counts as right by its values: of the two zeros either will do here.
    """
    folders = lineage.build(case, work / case.name, tied=False)
    expected = reference.mixed(folders, case.by, case.graft)
    out = work / "out"
    records = []

    def note(tool: str, what: str, outcome: Outcome) -> None:
        record: dict[str, Any] = {"case": case.name, "tool": tool, "what": what}
        record |= {"status": outcome.status, "error": outcome.error}
        if outcome.status == 0:
            record["figures"] = measure(case, folders, expected, out, held).to_dict()
        records.append(record)
        print(json.dumps(record), flush=True)

    for attempt in mergekit.attempts(folders):
        shutil.rmtree(out, ignore_errors=True)
        note("mergekit", attempt.what, mergekit.run(attempt, environment, work, out))
    shutil.rmtree(out, ignore_errors=True)
    note("paramdelta", *paramdelta(case, folders, work, out))
    return records


def versions() -> dict[str, str]:
    """Of all that takes part."""
    import tokenizers
    import torch
    import transformers

    from paramdelta import __version__

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "mergekit": VERSION,
        "paramdelta": __version__,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything and write it down."""
    parser = argparse.ArgumentParser(prog="python -m studies.vocabulary", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=Path("docs/vocabulary.md"))
    parser.add_argument("--mergekit", type=Path, default=Path(".venv-mergekit"))
    parser.add_argument("--only", nargs="*", help="names of cases")
    options = parser.parse_args(arguments)
    try:
        texts = text.read(options.data)
    except text.DataMissingError as error:
        sys.exit(str(error))
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    ensure_environment(options.mergekit)
    found = lineage.cases(texts.general, texts.domain, SIZE, MORE)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for name, case in found.items():
            if options.only is None or name in options.only:
                records += examine(case, Path(folder), options.mergekit, texts.held)
    result = {
        "command": "python -m studies.vocabulary",
        "versions": versions(),
        "cases": {
            name: {"what": c.what, "rows": dict(zip(lineage.ROLES, c.rows, strict=True))}
            for name, c in found.items()
        },
        "attempts": records,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page.write(options.page, result)
