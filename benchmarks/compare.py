"""paramdelta beside the floor and mergekit, in one run and in turns: what `make bench` runs.

    python -m benchmarks.compare [--rounds 3] [--only floor,paramdelta] [--cache cold]

Every round runs each contender once, warm and cold, in the same order, so that whatever else the
machine does meets all of them; ratios are taken within a round, and the median of the rounds is
reported. Before a run, and not timed: the last output is removed, everything dirty is synced, the
page cache is dropped, then the contender mixes a tiny checkpoint, so that its own program files
are warm, and for a warm run the inputs are read once. A round before the first lets the machine
settle and is thrown away, but for its outputs, which are compared with the correctly rounded sum.

This process stays small on purpose: see meter.py.
"""

import argparse
import importlib.metadata
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import machine, mergekit, page_cache
from benchmarks.meter import ROOT, Reading, measure

RESULTS = ROOT / "benchmarks" / "results" / "compare.json"
TINY = ["--layers=1", "--hidden=64", "--vocab=512", "--intermediate=128", "--heads=4"]
TINY += ["--kv-heads=2"]
CACHES = ("warm", "cold")


@dataclass(frozen=True)
class Lineage:
    """The three checkpoints of one mix, and a place beside them."""

    folder: Path

    @property
    def inputs(self) -> tuple[Path, Path, Path]:
        """post, base, new base."""
        return self.folder / "post", self.folder / "base", self.folder / "new"

    def files(self) -> list[Path]:
        """The weights of all three."""
        return [path for folder in self.inputs for path in sorted(folder.glob("*.safetensors"))]


@dataclass(frozen=True)
class Contender:
    """Something that makes an output: its name, its command, whether it mixes or only copies."""

    name: str
    command: Callable[[Lineage, Path], list[str]]
    mixes: bool = True


def contenders(mergekit_environment: Path) -> list[Contender]:
    """All of them, in the order in which they take turns."""

    def floor(*options: str) -> Callable[[Lineage, Path], list[str]]:
        program = [sys.executable, "-m", "benchmarks.floor"]
        return lambda lineage, out: [*program, *map(str, (*lineage.inputs, out)), *options]

    def paramdelta(lineage: Lineage, out: Path) -> list[str]:
        post, base, new = map(str, lineage.inputs)
        program = str(Path(sys.executable).with_name("paramdelta"))
        return [
            program,
            "mix",
            "--post",
            post,
            "--base",
            base,
            "--new-base",
            new,
            "--out",
            str(out),
        ]

    def merge(*options: str) -> Callable[[Lineage, Path], list[str]]:
        program = str(mergekit.program(mergekit_environment))

        def command(lineage: Lineage, out: Path) -> list[str]:
            recipe = lineage.folder / "mergekit.yml"
            mergekit.write_recipe(recipe, *lineage.inputs)
            return [program, str(recipe), str(out), *mergekit.PLAIN, *options]

        return command

    return [
        Contender("floor", floor(), mixes=False),
        Contender("floor-fsync", floor("--fsync"), mixes=False),
        Contender("paramdelta", paramdelta),
        Contender("mergekit", merge()),
        Contender("mergekit-tuned", merge(*mergekit.TUNED)),
    ]


def run_once(
    contender: Contender, lineage: Lineage, tiny: Lineage, out: Path, cache: str
) -> Reading:
    """Bring the machine into the wanted state, then measure one run."""
    _remove(out)
    page_cache.drop(lineage.files())
    _child(contender.command(tiny, out))
    _remove(out)
    if cache == "warm":
        page_cache.warm(lineage.files())
    os.sync()
    return _child(contender.command(lineage, out))


def _child(command: list[str]) -> Reading:
    return measure(command, mergekit.ENVIRONMENT)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def summarize(runs: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Medians by cache and contender, and `times_paramdelta`: wall over paramdelta's, in turns."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for cache in CACHES:
        walls = {
            (run["contender"], run["round"]): run["wall_s"] for run in runs if run["cache"] == cache
        }
        for name in dict.fromkeys(name for name, _ in walls):
            own = [run for run in runs if (run["contender"], run["cache"]) == (name, cache)]
            ratios = [
                run["wall_s"] / walls["paramdelta", run["round"]]
                for run in own
                if ("paramdelta", run["round"]) in walls
            ]
            row = {
                "wall_s": statistics.median(run["wall_s"] for run in own),
                "wall_s_least": min(run["wall_s"] for run in own),
                "wall_s_most": max(run["wall_s"] for run in own),
                "cpu_s": statistics.median(run["user_s"] + run["system_s"] for run in own),
                "peak_rss_bytes": max(run["peak_rss_bytes"] for run in own),
                "peak_anonymous_bytes": max(run["peak_anonymous_bytes"] or 0 for run in own),
            }
            if ratios:
                row["times_paramdelta"] = statistics.median(ratios)
            summary.setdefault(cache, {})[name] = row
    return summary


def disk(runs: list[dict]) -> dict[str, float]:
    """What the cold floor saw of the disk: median bytes per second, reads and synced copies."""
    seen = [
        json.loads(run["output"])
        for run in runs
        if (run["contender"], run["cache"]) == ("floor-fsync", "cold")
    ]
    return {key: statistics.median(each[key] for each in seen) for key in (seen[0] if seen else ())}


def main() -> None:
    """Make what is missing, measure, and write the results after every round."""
    options = _options()
    everyone = contenders(options.mergekit_environment)
    chosen = [each for each in everyone if each.name in options.only]
    if any(each.name.startswith("mergekit") for each in chosen):
        mergekit.ensure_environment(options.mergekit_environment)
    lineage = Lineage(options.data / "lineage")
    tiny = Lineage(options.data / "tiny")
    _make(lineage, options.shape)
    _make(tiny, TINY)
    out = options.data / "out"

    report = {
        "machine": machine.describe(options.data),
        "versions": _versions(options.mergekit_environment),
        "checkpoints": _sizes(lineage),
        "commands": {each.name: _readable(each.command(lineage, out), lineage) for each in chosen},
        "caches_dropped_by": page_cache.drop(lineage.files()),
    }
    caches = options.cache
    if report["caches_dropped_by"] is None and "cold" in caches:
        print("This system does not let the page cache be dropped: no cold runs.")
        caches = [cache for cache in caches if cache != "cold"]
    report["agreement"] = _settle(chosen, lineage, tiny, out)
    runs: list[dict] = []
    for number in range(1, options.rounds + 1):
        for cache in caches:
            for contender in chosen:
                reading = run_once(contender, lineage, tiny, out, cache)
                print(
                    f"round {number} {cache} {contender.name}: {reading.wall_s:.2f} s", flush=True
                )
                run = {"contender": contender.name, "cache": cache, "round": number}
                runs.append(run | asdict(reading))
        report |= {"rounds": number, "disk": disk(runs), "summary": summarize(runs)}
        report["runs"] = [{k: v for k, v in run.items() if k != "output"} for run in runs]
        options.results.write_text(json.dumps(report, indent=1) + "\n")
    _remove(out)


def _settle(chosen: list[Contender], lineage: Lineage, tiny: Lineage, out: Path) -> dict[str, dict]:
    """The round that does not count; how near each contender's output is to the right one."""
    agreement = {}
    for contender in chosen:
        run_once(contender, lineage, tiny, out, "warm")
        if contender.mixes:
            module = [sys.executable, "-m", "benchmarks.agreement", *lineage.inputs, out]
            done = subprocess.run(module, check=True, cwd=ROOT, capture_output=True)
            agreement[contender.name] = json.loads(done.stdout)
            print(f"{contender.name} beside the right sum: {agreement[contender.name]}", flush=True)
    return agreement


def _options() -> argparse.Namespace:
    names = [each.name for each in contenders(Path())]
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
        epilog="Further options go to make_checkpoints: --layers, --hidden, --vocab, ...",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=names)
    parser.add_argument("--cache", type=lambda text: text.split(","), default=list(CACHES))
    parser.add_argument("--data", type=Path, default=ROOT / ".cache" / "bench")
    parser.add_argument("--mergekit-environment", type=Path, default=ROOT / ".venv-mergekit")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options, shape = parser.parse_known_args()
    if unknown := {*options.only} - {*names} | {*options.cache} - {*CACHES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    options.shape = shape
    options.data = options.data.resolve()
    options.mergekit_environment = options.mergekit_environment.absolute()
    return options


def _make(lineage: Lineage, shape: list[str]) -> None:
    """Run make_checkpoints in a child, so that numpy stays out of this process."""
    module = [sys.executable, "-m", "benchmarks.make_checkpoints", str(lineage.folder)]
    subprocess.run([*module, *shape], check=True, cwd=ROOT)


def _versions(mergekit_environment: Path) -> dict[str, str]:
    """The versions of what was measured, and of what does the work in it."""
    versions = {}
    for name in ("paramdelta", "numpy", "numba"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    python = mergekit.program(mergekit_environment).with_name("python")
    if python.exists():
        names = ("mergekit", "torch", "transformers", "safetensors")
        code = f"import importlib.metadata as m; print(*map(m.version, {names}))"
        seen = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
        versions |= {f"mergekit's {n}": v for n, v in zip(names, seen.stdout.split(), strict=True)}
    return versions


def _sizes(lineage: Lineage) -> dict[str, object]:
    """What is mixed: the shape it was made with, files and bytes."""
    return {
        "made": json.loads((lineage.folder / "made.json").read_text()),
        "files_each": len(lineage.files()) // len(lineage.inputs),
        "bytes_in": sum(path.stat().st_size for path in lineage.files()),
        "bytes_out": sum(path.stat().st_size for path in lineage.inputs[-1].glob("*.safetensors")),
    }


def _readable(command: list[str], lineage: Lineage) -> str:
    """A command line without this machine's folders."""
    program, *rest = command
    line = shlex.join([Path(program).name, *rest])
    return line.replace(f"{lineage.folder}/", "").replace(f"{lineage.folder.parent}/", "")


if __name__ == "__main__":
    main()
