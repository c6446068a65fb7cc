"""A sweep of scales beside as many mixes, in one run and in turns.

    python -m benchmarks.sweep [--rounds 3] [--scales 0.5,0.75,1.0,1.25] [--cache warm,cold]

The state of the machine before each run, the round that is thrown away and the medians of ratios
within a round are as in compare.py. In the round that does not count, every file of every output of
the sweep is compared with the mix's. Both write all outputs side by side, so the disk needs room
for as many, 11.3 GB at the benchmark's shape.

Bytes are counted twice: by paramdelta, weights alone, and by the kernel, all calls of the process,
its program files among them.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import compare, machine, page_cache
from benchmarks.compare import CACHES, TINY, Lineage
from benchmarks.meter import ROOT, Reading, measure

RESULTS = ROOT / "benchmarks" / "results" / "sweep.json"
PROGRAM = str(Path(sys.executable).with_name("paramdelta"))


@dataclass(frozen=True)
class Run:
    """One contender once: its seconds, and its bytes, as paramdelta and as the kernel count."""

    wall_s: float
    cpu_s: float
    peak_anonymous_bytes: int
    weight_bytes: int
    kernel_read_bytes: int
    kernel_written_bytes: int


def commands(lineage: Lineage, out: Path, scales: list[str]) -> dict[str, list[list[str]]]:
    """By contender, what it runs, one after the other."""
    post, base, new = map(str, lineage.inputs)
    inputs = ["--post", post, "--base", base, "--new-base", new, "--json"]
    sweep = [PROGRAM, "sweep", *inputs, "--scale", ",".join(scales), "--out", str(out)]
    mixes = [
        [PROGRAM, "mix", *inputs, "--scale", scale, "--out", str(out / f"scale-{float(scale)}")]
        for scale in scales
    ]
    return {"sweep": [sweep], "mixes": mixes}


def run_once(
    name: str, lineage: Lineage, tiny: Lineage, out: Path, scales: list[str], cache: str
) -> Run:
    """Bring the machine into the wanted state, then measure one contender."""
    _remove(out)
    page_cache.drop(lineage.files())
    for command in commands(tiny, out, scales)[name]:
        measure(command)
    _remove(out)
    if cache == "warm":
        page_cache.warm(lineage.files())
    os.sync()
    out.mkdir()
    readings = [measure(command) for command in commands(lineage, out, scales)[name]]
    return Run(
        sum(each.wall_s for each in readings),
        sum(each.user_s + each.system_s for each in readings),
        max(each.peak_anonymous_bytes or 0 for each in readings),
        sum(_weights(each) for each in readings),
        sum(each.read_bytes or 0 for each in readings),
        sum(each.written_bytes or 0 for each in readings),
    )


def _weights(reading: Reading) -> int:
    """Bytes of weights that a command says it read and wrote."""
    done = json.loads(reading.output.splitlines()[-1])
    if "bytes_moved" in done:
        return done["bytes_moved"]
    return done["bytes_read"] + done["bytes_written"]


def summarize(runs: list[dict]) -> dict[str, dict[str, float]]:
    """By cache: medians of the seconds, and of the sweep's share of the mixes', in turns."""
    summary: dict[str, dict[str, float]] = {}
    for cache in dict.fromkeys(run["cache"] for run in runs):
        both = {
            name: [r for r in runs if (r["cache"], r["contender"]) == (cache, name)]
            for name in ("sweep", "mixes")
        }
        pairs = list(zip(both["sweep"], both["mixes"], strict=True))
        row = {
            f"{name}_wall_s": statistics.median(run["wall_s"] for run in own)
            for name, own in both.items()
        }
        row["wall_ratio"] = statistics.median(s["wall_s"] / m["wall_s"] for s, m in pairs)
        row["wall_ratio_least"] = min(s["wall_s"] / m["wall_s"] for s, m in pairs)
        row["wall_ratio_most"] = max(s["wall_s"] / m["wall_s"] for s, m in pairs)
        row["weight_bytes_ratio"] = max(s["weight_bytes"] / m["weight_bytes"] for s, m in pairs)
        kernel = [
            (s["kernel_read_bytes"] + s["kernel_written_bytes"])
            / (m["kernel_read_bytes"] + m["kernel_written_bytes"])
            for s, m in pairs
            if m["kernel_read_bytes"]
        ]
        if kernel:
            row["kernel_bytes_ratio"] = max(kernel)
        summary[cache] = row
    return summary


def main() -> None:
    """Make what is missing, measure, and write the results after every round."""
    options = _options()
    scales = options.scales
    lineage, tiny = Lineage(options.data / "lineage"), Lineage(options.data / "tiny")
    if options.shape:
        lineage = Lineage(options.data / "sweep")
    compare._make(lineage, options.shape)
    compare._make(tiny, TINY)
    out = options.data / "out-sweep"
    dropped = page_cache.drop(lineage.files())
    caches = [cache for cache in options.cache if cache == "warm" or dropped]
    names = commands(lineage, out, scales)
    readable = {n: [compare._readable(c, lineage) for c in each] for n, each in names.items()}
    report = {
        "machine": machine.describe(options.data),
        "checkpoints": compare._sizes(lineage),
        "commands": readable,
        "caches_dropped_by": dropped,
        "bytes_ratio_at_most": (3 + len(scales)) / (4 * len(scales)),
    }
    digests = {}
    for name in names:  # the round that does not count
        run_once(name, lineage, tiny, out, scales, "warm")
        files = sorted(path for path in out.rglob("*") if path.is_file())
        digests[name] = {str(path.relative_to(out)): _digest(path) for path in files}
    report["files_alike"] = digests["sweep"] == digests["mixes"]
    print(f"{len(digests['sweep'])} files alike: {report['files_alike']}", flush=True)
    runs: list[dict] = []
    for number in range(1, options.rounds + 1):
        for cache in caches:
            for name in names:
                run = run_once(name, lineage, tiny, out, scales, cache)
                print(f"round {number} {cache} {name}: {run.wall_s:.2f} s", flush=True)
                runs.append({"contender": name, "cache": cache, "round": number} | asdict(run))
        report |= {"rounds": number, "summary": summarize(runs), "runs": runs}
        options.results.write_text(json.dumps(report, indent=1) + "\n")
    _remove(out)
    for cache, row in report["summary"].items():
        print(
            f"{cache}: {row['wall_ratio']:.2f} of the mixes' time, "
            f"{row['weight_bytes_ratio']:.4f} of their bytes (at most "
            f"{report['bytes_ratio_at_most']:.4f})"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        total = hashlib.sha256()
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
        epilog="Further options go to make_checkpoints: --layers, --hidden, --vocab, ...",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scales", type=lambda text: text.split(","), default="0.5,0.75,1.0,1.25")
    parser.add_argument("--cache", type=lambda text: text.split(","), default=list(CACHES))
    parser.add_argument("--data", type=Path, default=ROOT / ".cache" / "bench")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options, shape = parser.parse_known_args()
    options.shape = shape
    options.data = options.data.resolve()
    return options


if __name__ == "__main__":
    main()
