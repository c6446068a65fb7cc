"""Cost per GB and peak memory from 1 B to 70 B parameters: both should be flat.

    python -m benchmarks.flat [--sizes 1B,8B,70B,wide] [--rounds 1]

The files have the true names, shapes and sizes, but their data are holes and the sink discards:
the disk is out of the picture, what is left is planning, reading through the page cache, the
arithmetic and whatever grows with the model. "wide" has an embedding of 128256 × 16384. Every
size runs in a process of its own, so that the peak is its own, sizes in turns.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks import machine, page_cache
from benchmarks.llama import SIZES
from benchmarks.make_sparse import make
from benchmarks.meter import ROOT, measure

RESULTS = ROOT / "benchmarks" / "results" / "flat.json"


class Discard:
    """A Sink that wants everything and keeps nothing."""

    def wants(self, _piece: object) -> bool:
        """Always."""
        return True

    def write(self, _piece: object, _data: memoryview) -> None:
        """Forget the slice."""


def run(folder: Path) -> dict[str, float]:
    """Plan and carry out the mix of `folder`/post, /base and /new; seconds and bytes of each."""
    from paramdelta import api  # here, so that the measuring process stays small
    from paramdelta.engine import threads
    from paramdelta.recipe import Delta, Recipe

    begin = time.perf_counter()
    delta = Delta(str(folder / "post"), str(folder / "base"))
    plan = api.plan(Recipe(str(folder / "new"), (delta,)))
    plan.check()
    budget = api.budget_for(plan)
    planned = time.perf_counter()
    threads.run(plan, Discard(), budget)
    return {
        "plan_s": planned - begin,
        "run_s": time.perf_counter() - planned,
        "bytes": plan.bytes_to_read + plan.bytes_to_write,
        "tensors": len(plan.tensors),
        "parameters": plan.parameters,
        "projected_bytes": budget.projected,
    }


def main() -> None:
    """Measure every size, or be the child that runs one."""
    options = _options()
    if options.run:
        print(json.dumps(run(options.run)))
        return
    readings: dict[str, list[dict]] = {size: [] for size in options.sizes}
    for number in range(1, options.rounds + 1):
        for size in options.sizes:
            folder = options.data / "sparse" / size
            make(folder, SIZES[size])
            page_cache.drop(folder.glob("*/*.safetensors"))
            reading = measure([sys.executable, "-m", "benchmarks.flat", "--run", str(folder)])
            shutil.rmtree(folder)
            child = json.loads(reading.output)
            readings[size].append(asdict(reading) | child)
            rate = 1e9 * child["run_s"] / child["bytes"]
            peak = reading.peak_rss_bytes / 1e6
            print(f"round {number} {size}: {rate:.4f} s/GB, peak {peak:.0f} MB", flush=True)
    report = {
        "machine": machine.describe(options.data),
        "rounds": options.rounds,
        "sizes": {size: summarize(runs) for size, runs in readings.items()},
    }
    options.results.write_text(json.dumps(report, indent=1) + "\n")


def summarize(runs: list[dict]) -> dict[str, float]:
    """Medians of one size's rounds; memory at its highest."""
    first = runs[0]
    return {
        "parameters": first["parameters"],
        "tensors": first["tensors"],
        "bytes": first["bytes"],
        "plan_s": statistics.median(run["plan_s"] for run in runs),
        "run_s": statistics.median(run["run_s"] for run in runs),
        "run_s_per_gb": statistics.median(1e9 * run["run_s"] / run["bytes"] for run in runs),
        "cpu_s_per_gb": statistics.median(
            1e9 * (run["user_s"] + run["system_s"]) / run["bytes"] for run in runs
        ),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "projected_bytes": first["projected_bytes"],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", type=lambda text: text.split(","), default=["1B", "8B", "70B", "wide"]
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--data", type=Path, default=ROOT / ".cache" / "bench")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--run", type=Path, help="only mix this folder, and print what it took")
    options = parser.parse_args()
    options.data = options.data.resolve()
    if unknown := {*options.sizes} - {*SIZES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    main()
