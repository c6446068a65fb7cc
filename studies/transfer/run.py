"""Runs the study and writes its results as JSON."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from studies.transfer.distance import MULTIPLES, RATES, run_distance
from studies.transfer.lab import Lab, Programme, tiny
from studies.transfer.scenarios import SCENARIOS, run_controls, run_parts, run_scenario

WIDTHS = (32, 64, 128)
PARTS_OF_STUDY = ("scenarios", "parts", "controls", "distance", "widths", "final")


@dataclass(frozen=True)
class Plan:
    """What is run of the study. Seeds are 1 to `seeds`.

    `multiples` are those of the usual steps for which the distance part continues the base.
    """

    seeds: int
    programme: Programme
    cache: Path
    device: str = "cpu"
    multiples: Sequence[float] = MULTIPLES

    def lab(self, seed: int, width: int | None = None) -> Lab:
        """A seed's lab, at the usual width or another."""
        shape = self.programme.shape
        if width in (None, shape.width):
            return Lab(seed, self.programme, self.cache / "usual", self.device)
        sized = replace(shape, width=width, inner=width * 11 // 4)
        folder = self.cache / f"width-{width}"
        return Lab(seed, replace(self.programme, shape=sized), folder, self.device)


def run_seed(plan: Plan, part: str, seed: int) -> list[dict]:
    """One part of the study for one seed."""
    lab = plan.lab(seed)
    if part in ("scenarios", "final"):
        return [run_scenario(lab, scenario, final=part == "final") for scenario in SCENARIOS]
    if part == "parts":
        return [run_parts(lab)]
    if part == "controls":
        return [run_controls(lab, other=plan.lab(seed % plan.seeds + 1))]
    if part == "distance":
        return run_distance(lab, RATES, plan.multiples)
    return [
        {"width": width, **run_scenario(plan.lab(seed, width), SCENARIOS[0], final=False)}
        for width in WIDTHS
    ]


def run(plan: Plan, parts: Sequence[str], out: Path, jobs: int = 1) -> None:
    """Run the named parts of the study and write `out`/<part>.json for each, seed by seed.

    `jobs` seeds run at once, each in a process and on a core of its own; the results are the same.
    """
    out.mkdir(parents=True, exist_ok=True)
    seeds = range(1, plan.seeds + 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_settle) as pool:
        for part in parts:
            began = time.monotonic()
            one = partial(run_seed, plan, part)
            results: list[dict] = []
            for found in pool.map(one, seeds) if jobs > 1 else map(one, seeds):
                results += found
                record = {**_circumstances(plan.programme, plan.device), "results": results}
                record["seconds"] = round(time.monotonic() - began)
                text = json.dumps(record, indent=1, ensure_ascii=False)
                (out / f"{part}.json").write_text(text + "\n", encoding="utf-8")
                print(f"{part}: {len(results)} results, {record['seconds']} s", flush=True)


def _settle() -> None:
    """One thread and the same results every time."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


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
    parser.add_argument("--jobs", type=int, default=1, help="seeds that run at once, one a core")
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
    _settle()
    programme = tiny(Programme()) if options.tiny else Programme()
    parts = options.only or [part for part in PARTS_OF_STUDY if part != "final"]
    if options.final:
        parts = ["final"]
    multiples = [multiple for multiple in MULTIPLES if multiple <= options.farthest]
    plan = Plan(options.seeds, programme, options.cache, options.device, multiples)
    run(plan, parts, options.out, options.jobs)
