"""Kills runs and starts two at once, a thousand times: `python -m tests.torture`.

Each kill strikes at a chosen system call that changes files (see `tests.crash`): at every one of
the last calls of a run, where the output gets its place, and at random ones before. After it, what
is at the output is what was there before or the new one, whole; the same command then ends in the
same bytes, and nothing is left beside the output.

Two runs on one output start at a random distance: at least one succeeds, another one says why it
does not, and the output is right.

Writes a JSON report with the machine. `tests/test_torture.py` runs a few of each.
"""

import argparse
import json
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from tests.checkpoints import llama, moved, save
from tests.crash import Program
from tests.output.test_kill import OFTEN, digest

RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "torture.json"
LAST = 40  # calls at the end of a run that are all tried
BLOCKED = (2, 3)  # exit codes of a run that another one keeps from its output


@dataclass(frozen=True)
class Scenario:
    """One command and its output.

    ``command``: without ``--out``. ``old``: a command that makes an output which is there before,
    or None. ``members``: the folders that hold the outputs, below ``--out``; "" is itself.
    ``inside``: the output is the current folder. ``resumed``: the command finds an unfinished run.
    ``reads``: the command writes nothing.
    """

    name: str
    command: tuple[str, ...]
    old: tuple[str, ...] | None = None
    members: tuple[str, ...] = ("",)
    inside: bool = False
    resumed: bool = False
    reads: bool = False


def scenarios(folder: Path) -> list[Scenario]:
    """All commands that write folders, on three checkpoints of 2 MB."""
    base = llama(hidden=96, layers=3, vocab=4000)
    for number, name in enumerate(("base", "post", "new")):
        save(folder / name, moved(base, number), config_json={"model_type": "llama"})
    post, start = f"--post={folder / 'post'}", f"--base={folder / 'base'}"
    both = (post, start)
    three = (*both, f"--new-base={folder / 'new'}", "--shard-size", "1MB", "--memory", "80MB")
    three += ("--workers", "2")
    mix, sweep = ("mix", *three), ("sweep", *three, "--scale", "0.5,1")
    extract, lora = ("extract", *both), ("extract", *both, "--as", "lora", "--rank", "4")
    names = ("scale-0.5", "scale-1.0")
    return [
        Scenario("mix", mix),
        Scenario("mix --overwrite", (*mix, "--overwrite"), (*mix, "--scale", "0.25")),
        Scenario("sweep", sweep, None, names),
        Scenario("extract", extract),
        Scenario("extract --overwrite", (*extract, "--overwrite"), extract),
        Scenario("extract --as lora", lora),
    ]


def state(out: Path, scenario: Scenario) -> dict[str, str]:
    """A digest of each output that is there. A LoRA's weights depend on the number of threads."""
    return {
        name: digest(out / name)
        for name in scenario.members
        if (out / name).is_dir() and list((out / name).glob("[!.]*"))
    }


def kill(
    scenario: Scenario,
    kills: int,
    seed: int,
    folder: Path,
    settings: Mapping[str, float] = OFTEN,
) -> dict[str, int]:
    """Kill a command at many moments; returns how many kills struck, of how many tries.

    ``settings``: by default the command commits all the time. Then no two runs make equally many
    calls, and a kill at one of the last may come too late; with {} all runs make as many.

    Raises:
        AssertionError: a file was lost, differs or is left over.
    """
    chance = random.Random(seed)
    place = folder / f"place-{scenario.name.replace(' ', '')}"
    out = place / "out"
    struck = tries = 0
    with Program(folder / "said", settings) as program:
        program.warm_up([*scenario.command, "--out", str(folder / "warm")])
        shutil.rmtree(folder / "warm")
        before: dict[str, str] = {}
        saved = folder / "saved"
        if scenario.old is not None:
            ended = program.run([*scenario.old, "--out", str(out)])
            assert ended.code == 0, ended.err
            before = state(out, scenario)
            shutil.copytree(out, saved)
        whole = program.run([*scenario.command, "--out", str(out)])
        assert whole.code == 0, whole.err
        after = state(out, scenario)
        moments = list(range(max(1, whole.calls - LAST), whole.calls + 1))[-kills:]
        moments += [chance.randint(1, whole.calls) for _ in range(kills - len(moments))]
        for at in moments:
            shutil.rmtree(place)
            if scenario.old is not None:
                shutil.copytree(saved, out)
            tries += 1
            ended = program.run([*scenario.command, "--out", str(out)], at)
            struck += ended.killed
            for name, found in state(out, scenario).items():
                assert found in (before.get(name), after[name]), (scenario.name, at, name)
            ended = program.run([*scenario.command, "--out", str(out)])
            # Whole before the kill, and not replaced without being asked.
            kept = ended.code == 2 and out.is_dir() and scenario.old is None
            assert kept or ended.code == 0, (scenario.name, at, ended.err)
            assert state(out, scenario) == after, (scenario.name, at)
            left = [p.name for p in place.rglob(".*") if "paramdelta" in p.name]
            assert not left or ended.code == 2, (scenario.name, at, left)
        shutil.rmtree(saved, ignore_errors=True)
    return {"tries": tries, "kills": struck, "calls of a run": whole.calls}


def race(pairs: int, seed: int, folder: Path) -> dict[str, int]:
    """Start two runs on one output at random distances.

    Raises:
        AssertionError: none succeeded, one gave no reason, or the output is not right.
    """
    chance = random.Random(seed)
    (mix, *_) = scenarios(folder)
    place = folder / "race"
    out = place / "out"
    counts = {"pairs": 0, "one blocked": 0, "one after the other": 0}
    with Program(folder / "one", OFTEN) as one, Program(folder / "two", OFTEN) as two:
        for program in (one, two):
            program.warm_up([*mix.command, "--out", str(folder / f"warm-{id(program)}")])
        began = time.monotonic()
        whole = one.run([*mix.command, "--out", str(out)])
        assert whole.code == 0, whole.err
        lasts = time.monotonic() - began
        expected = state(out, mix)
        for number in range(pairs):
            shutil.rmtree(place)
            flags = [(), ("--fresh",), ("--overwrite",), ("--fresh", "--overwrite")][number % 4]
            command = [*mix.command, *flags, "--out", str(out)]
            found = {}

            def start(program: Program, wait: float, key: int, command: Sequence[str] = command,
                      found: dict = found) -> None:  # fmt: skip
                time.sleep(wait)
                found[key] = program.run(command)

            wait = chance.uniform(0, 1.2 * lasts)
            threads = [
                threading.Thread(target=start, args=(one, 0.0, 0)),
                threading.Thread(target=start, args=(two, wait, 1)),
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            codes = sorted(each.code for each in found.values())
            assert codes[0] == 0, (number, [each.err for each in found.values()])
            if codes[1] == 0:
                counts["one after the other"] += 1
            else:
                assert codes[1] in BLOCKED, (number, found)
                loser = next(each for each in found.values() if each.code != 0)
                assert "error:" in loser.err, loser.err
                assert "Traceback" not in loser.err, loser.err
                counts["one blocked"] += 1
            assert state(out, mix) == expected, number
            assert not [p for p in place.iterdir() if p.name != "out"], list(place.iterdir())
            counts["pairs"] += 1
    return counts


def main(kills: int, pairs: int, seed: int) -> dict:
    """All scenarios; the report."""
    report: dict = {"seed": seed, "kills": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report["machine"] = machine.describe(folder)
        all_of_them = scenarios(folder / "sources")
        share = -(-kills // len(all_of_them))
        for number, scenario in enumerate(all_of_them):
            work = folder / f"work-{number}"
            report["kills"][scenario.name] = kill(scenario, share, seed + number, work)
            print(scenario.name, report["kills"][scenario.name], flush=True)
        report["pairs"] = race(pairs, seed, folder / "race")
        print("pairs", report["pairs"], flush=True)
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    result = main(given.kills, given.pairs, given.seed)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
