"""Runs the study and writes its results as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from studies.transfer.distance import MULTIPLES, RATES, run_distance
from studies.transfer.lab import Lab, Programme, tiny
from studies.transfer.scenarios import SCENARIOS, run_controls, run_parts, run_scenario

WIDTHS = (32, 64, 128)
PARTS_OF_STUDY = ("scenarios", "parts", "controls", "distance", "widths", "final")


def run(
    parts: Sequence[str],
    seeds: int,
    programme: Programme,
    cache: Path,
    out: Path,
    device: str,
    multiples: Sequence[float] = MULTIPLES,
) -> None:
    """Run the named parts of the study and write `out`/<part>.json for each.

    `multiples` are those of the usual steps for which the distance part continues the base.
    """
    out.mkdir(parents=True, exist_ok=True)
    labs = [Lab(seed, programme, cache / "usual", device) for seed in range(1, seeds + 1)]
    for part in parts:
        began = time.monotonic()
        results: list[dict] = []

        def note(result: dict | list[dict], part=part, began=began, results=results) -> None:
            results += result if isinstance(result, list) else [result]
            record = {**_circumstances(programme, device), "results": results}
            record["seconds"] = round(time.monotonic() - began)
            text = json.dumps(record, indent=1, ensure_ascii=False)
            (out / f"{part}.json").write_text(text + "\n", encoding="utf-8")
            print(f"{part}: {len(results)} results, {record['seconds']} s", flush=True)

        if part in ("scenarios", "final"):
            for lab in labs:
                for scenario in SCENARIOS:
                    note(run_scenario(lab, scenario, final=part == "final"))
        elif part == "parts":
            for lab in labs:
                note(run_parts(lab))
        elif part == "controls":
            for lab, other in zip(labs, labs[1:] + labs[:1], strict=True):
                note(run_controls(lab, other))
        elif part == "distance":
            for lab in labs[:2]:
                for rate in RATES:
                    note(run_distance(lab, (rate,), multiples))
        elif part == "widths":
            for width in WIDTHS:
                shape = replace(programme.shape, width=width, inner=width * 11 // 4)
                sized = replace(programme, shape=shape)
                for seed in range(1, min(seeds, 3) + 1):
                    folder = "usual" if shape == programme.shape else f"width-{width}"
                    lab = Lab(seed, sized, cache / folder, device)
                    note({"width": width, **run_scenario(lab, SCENARIOS[0], final=False)})


def _circumstances(programme: Programme, device: str) -> dict:
    """What a reader needs to run it again."""
    return {
        "command": "python -m studies.transfer " + shlex.join(sys.argv[1:]),
        "programme": asdict(programme),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """The command `python -m studies.transfer`."""
    parser = argparse.ArgumentParser(prog="python -m studies.transfer", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--cache", type=Path, default=Path("build/transfer"), help="trained models")
    parser.add_argument("--out", type=Path, default=Path("docs/study"), help="folder for the JSON")
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS_OF_STUDY,
        help="a part of the study; may be given again; default all but final",
    )
    parser.add_argument(
        "--final",
        action="store_true",
        help="score the held-out people: once, when every setting is decided",
    )
    parser.add_argument(
        "--farthest",
        type=float,
        default=max(MULTIPLES),
        help="distance: continue the base for at most so many times the usual steps",
    )
    parser.add_argument("--tiny", action="store_true", help="a size that says nothing: for tests")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    programme = tiny(Programme()) if options.tiny else Programme()
    parts = options.only or [part for part in PARTS_OF_STUDY if part != "final"]
    if options.final:
        parts = ["final"]
    multiples = [multiple for multiple in MULTIPLES if multiple <= options.farthest]
    run(parts, options.seeds, programme, options.cache, options.out, options.device, multiples)
