"""Kill `paramdelta evaluate` at random moments, continue, and compare with an undisturbed run.

``python -m studies.evaluation.kills`` writes benchmarks/results/evaluation-kills.json. It needs
lm-evaluation-harness. The suite is the shipped lineage's own, with all five models.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe
from paramdelta.demo.tour import LINEAGE

RESULTS = Path("benchmarks/results/evaluation-kills.json")
CODE = "import sys; sys.argv[0] = 'paramdelta'; from paramdelta.cli.app import main; main()"


def command(out: Path, limit: int) -> list[str]:
    """The evaluation, in a process of its own."""
    places = [
        x for name in ("post", "base", "new-base") for x in (f"--{name}", str(LINEAGE / name))
    ]
    models = f"base,post,new-base,paramdelta,direct={LINEAGE / 'direct'}"
    options = ["--suite", "demo", "--models", models, "--limit", str(limit), "--out", str(out)]
    return [sys.executable, "-c", CODE, "evaluate", *places, *options]


def finished(out: Path) -> int:
    """How many cells are kept."""
    return len(list(out.glob("samples/*/*.json")))


def main() -> None:
    """Kill, continue, compare."""
    parser = argparse.ArgumentParser(prog="python -m studies.evaluation.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--limit", type=int, default=10)
    options = parser.parse_args()
    chance = random.Random(20)
    with tempfile.TemporaryDirectory() as made:
        whole, killed = Path(made) / "whole", Path(made) / "killed"
        subprocess.run(command(whole, options.limit), check=True, stdout=subprocess.DEVNULL)
        kept = []
        for _ in range(options.kills):
            process = subprocess.Popen(
                command(killed, options.limit), stdout=subprocess.DEVNULL, start_new_session=True
            )
            aim = finished(killed) + chance.randint(0, 4)
            while finished(killed) < aim and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.5) if aim else chance.uniform(0, 20))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kept.append(finished(killed))
        subprocess.run(command(killed, options.limit), check=True, stdout=subprocess.DEVNULL)
        names = ("results.json", "report.md", "report.html", "card.md")
        record = {
            "command": f"python -m studies.evaluation.kills --kills {options.kills}",
            "machine": describe(Path(made)),
            "kills": options.kills,
            "cells": finished(whole),
            "kept_after_each_kill": kept,
            "same_files": {n: (whole / n).read_bytes() == (killed / n).read_bytes() for n in names},
        }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
