"""Time and memory of an analysis beside a mix of the same checkpoints, in turns.

    python -m benchmarks.analysis [FOLDER] [--rounds N]

FOLDER holds base, post and new of `benchmarks.make_checkpoints`; they are made if they are missing.
"""

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.llama import BENCH
from benchmarks.machine import describe
from benchmarks.make_checkpoints import add_shape_options, chosen_shape, make
from benchmarks.meter import Reading, measure

RESULTS = Path(__file__).with_name("results") / "analysis.json"
CODE = "import sys; sys.argv[0] = 'paramdelta'; from paramdelta.cli.app import main; main()"
START = [sys.executable, "-c", CODE]


def run(folder: Path, rounds: int) -> dict:
    """The medians of each command, and the ratios to the mix."""
    sources = [
        f"--{option}={folder / role}"
        for option, role in (("post", "post"), ("base", "base"), ("new-base", "new"))
    ]
    out = folder / "out"
    commands = {
        "mix": ["mix", *sources, f"--out={out}", "--no-check"],
        "analyze": ["analyze", *sources],
        "analyze, with a report": ["analyze", *sources, f"--report={folder / 'report.html'}"],
    }
    readings: dict[str, list[Reading]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            reading = measure([*START, *command])
            if turn:  # the first turn compiles, and fills the page cache
                readings[name].append(reading)
    shutil.rmtree(out, ignore_errors=True)
    rows = {name: _row(found) for name, found in readings.items()}
    for row in rows.values():
        row["wall_times_mix"] = row["wall_s"] / rows["mix"]["wall_s"]
        row["peak_times_mix"] = row["peak_rss_bytes"] / rows["mix"]["peak_rss_bytes"]
    return rows


def _row(readings: list[Reading]) -> dict[str, float]:
    return {
        "wall_s": statistics.median(r.wall_s for r in readings),
        "wall_s_least": min(r.wall_s for r in readings),
        "wall_s_most": max(r.wall_s for r in readings),
        "cpu_s": statistics.median(r.user_s + r.system_s for r in readings),
        "peak_rss_bytes": max(r.peak_rss_bytes for r in readings),
    }


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(".cache/analysis"))
    parser.add_argument("--rounds", type=int, default=5)
    add_shape_options(parser)
    options = parser.parse_args()
    llama = chosen_shape(options)
    make(options.folder, llama, options.seed)
    rows = run(options.folder, options.rounds)
    report = {
        "command": "python -m benchmarks.analysis",
        "machine": describe(options.folder),
        "rounds": options.rounds,
        "shape": asdict(llama),
        "is_benchmark_size": llama == BENCH,
        "parameters": llama.parameters(),
        "summary": rows,
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, row in rows.items():
        print(
            f"{name}: {row['wall_s']:.2f} s, {row['wall_times_mix']:.2f} × mix, "
            f"{row['peak_rss_bytes'] / 1e6:.0f} MB, {row['peak_times_mix']:.2f} × mix"
        )


if __name__ == "__main__":
    main()
