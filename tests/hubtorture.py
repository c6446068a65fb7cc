"""Runs from the Hub to this machine and to the Hub, with random faults: the same bytes every time.

    python -m tests.hubtorture [--runs 50]

Each run draws its faults anew: connections that break in mid-body, 503, 429, expired addresses,
short and wrong ranges, failed uploads; and every second push is killed behind a shard and continued
by another process, which has nothing of the first one. Writes benchmarks/results/hubtorture.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import describe
from tests.checkpoints import llama, moved, save
from tests.hubserver import FAULTS, HubServer, repo

RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "hubtorture.json"
CHANCE = 0.15  # of a fault at each request
SHARD = "1MB"
CODE = """
import os, sys
from paramdelta.output.hub import HubDestination
from paramdelta.storage import http
import paramdelta
http.FIRST_PAUSE = 0.001
ship, left = HubDestination.ship, iter(range(int(sys.argv[2])))
def dying(self, *args):
    ship(self, *args)
    if next(left, None) is None:
        os._exit(9)
if int(sys.argv[2]) >= 0:
    HubDestination.ship = dying
recipe = paramdelta.Recipe("org/new", (paramdelta.Delta("org/post", "org/base"),))
paramdelta.mix(recipe, sys.argv[1], shard_size=sys.argv[3])
"""


def lineage(folder: Path) -> None:
    """Three checkpoints of some MB, in several files."""
    base = llama(hidden=128, layers=6, vocab=4096)
    for name, tensors in (("base", base), ("post", moved(base, 1)), ("new", moved(base, 2))):
        save(folder / name, tensors, shards=3, config_json={"model_type": "llama"})


def repos(folder: Path) -> dict:
    """The same as repositories."""
    return {
        f"org/{name}": repo({p.name: p.read_bytes() for p in (folder / name).iterdir()})
        for name in ("base", "post", "new")
    }


def run(server: HubServer, home: Path, out: str, shipped: int = -1) -> int:
    """A mix in a process of its own, with an empty cache, killed behind so many shards."""
    command = [sys.executable, "-c", CODE, out, str(shipped), SHARD]
    done = subprocess.run(command, env=server.environment(home), capture_output=True, text=True)
    if done.returncode not in (0, 9):
        raise SystemExit(done.stderr)
    return done.returncode


def weights(files: dict) -> dict[str, bytes]:
    """The weight files among some files."""
    return {name: bytes(data[:]) for name, data in files.items() if name.endswith("safetensors")}


def torture(runs: int, folder: Path) -> dict:
    """Every second run pushes, and every second push is killed once."""
    lineage(folder)
    faults = dict.fromkeys(FAULTS, 0)
    killed = pushed = 0
    with HubServer(repos(folder)) as server:
        run(server, folder / "home", str(folder / "expected"))
    expected = {p.name: p.read_bytes() for p in (folder / "expected").glob("*.safetensors")}
    for number in range(runs):
        with HubServer(repos(folder), faults=CHANCE, seed=number) as server:
            if number % 2:
                kill = (number // 2) % len(expected) if number % 4 == 1 else -1
                if kill >= 0 and run(server, folder / "home", "hf://me/out", kill) == 9:
                    killed += 1
                    run(server, folder / "other", "hf://me/out")
                elif kill < 0:
                    run(server, folder / "home", "hf://me/out")
                made = server.repos["me/out"]
                assert made.refs.keys() == {"main"}, number
                assert weights(made.revisions[made.refs["main"]]) == expected, number
                pushed += 1
            else:
                out = folder / f"out-{number}"
                run(server, folder / "home", str(out))
                found = {p.name: p.read_bytes() for p in out.glob("*.safetensors")}
                assert found == expected, number
            for fault in server.injected:
                faults[fault] += 1
    return {
        "runs": runs,
        "identical": runs,
        "pushed": pushed,
        "killed_and_continued": killed,
        "faults": faults,
    }


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    os.environ["PARAMDELTA_CHECK"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        found = torture(options.runs, Path(folder))
        found["machine"] = describe(Path(folder))
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
