"""One mix from and to every kind of place, by every engine: the same bytes, bounded memory.

    python -m benchmarks.anywhere DIR [--rows threads,disk-s3,…]

Makes three checkpoints in DIR and writes results/anywhere.json and the table of docs/clusters.md.
Rows whose components are absent (moto, azurite, Slurm, ray) are left out, and say so.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks import servers
from benchmarks.llama import Llama
from benchmarks.machine import describe
from benchmarks.make_checkpoints import make
from benchmarks.meter import ROOT, UNCHECKED, Reading, measure
from tests.clusters.slurm import finished, why_not
from tests.clusters.slurm import slurm as running_slurm

RESULTS = ROOT / "benchmarks" / "results" / "anywhere.json"
PAGE = ROOT / "docs" / "clusters.md"
SHAPE = Llama(hidden=1024, layers=12, intermediate=2816, heads=16, kv_heads=8, vocab=32000)
SHARD = "50MB"
# For many runs that lose a node: what counts there is when it is lost.
SMALL = Llama(hidden=256, layers=8, intermediate=704, heads=4, kv_heads=4, vocab=8000)
SMALL_SHARD = "3MB"
RUN = [sys.executable, "-c", "from paramdelta.cli.app import main; main()"]
NAMES = {
    "threads": "disk → disk, threads",
    "disk-s3": "disk → S3",
    "s3-s3": "S3 → S3",
    "disk-azure": "disk → Azure",
    "slurm": "disk → disk, Slurm array of 4",
    "ray": "disk → disk, Ray with 2 nodes",
    "killed-parts": "disk → disk, 4 parts, 20 of them killed and run again",
    "killed-nodes": "disk → disk, Ray, a node lost in each of 20 runs",
}


class Bench:
    """What the rows share: the folder, and the bytes that all of them must have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: dict[str, str] = {}
        self.secrets = (servers.SECRET, servers.KEY)

    def command(self, out: object, *options: object, sources: str | None = None) -> list[str]:
        """The mix, to a place called "mixed"."""
        root = sources or self.folder / "in"
        names = {"--post": "post", "--base": "base", "--new-base": "new"}
        given = [text for option, name in names.items() for text in (option, f"{root}/{name}")]
        return [*RUN, "mix", *given, "--out", str(out), "--shard-size", SHARD, *map(str, options)]

    def out(self, row: str) -> Path:
        """A new place for the output of a row."""
        shutil.rmtree(self.folder / row, ignore_errors=True)
        (self.folder / row).mkdir()
        return self.folder / row / "mixed"

    def check(self, found: dict[str, str], others: bool = False) -> dict[str, object]:
        """Whether the files are those of threads. ``others``: of other addresses, which the card
        and the lock name.
        """
        ignored = {"README.md", "paramdelta.lock.json"} if others else set()
        names = self.expected.keys() | found.keys()
        wrong = sorted(n for n in names - ignored if self.expected.get(n) != found.get(n)) + sorted(
            ignored - found.keys()
        )
        if wrong:
            raise SystemExit(f"other bytes than threads: {wrong[:4]}")
        return {"files": len(found), "identical": len(names - ignored)}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def figures(reading: Reading) -> dict[str, object]:
    """What is kept of a measurement."""
    return {"wall_s": reading.wall_s, "peak_rss_bytes": reading.peak_rss_bytes}


def in_threads(bench: Bench) -> dict[str, object]:
    """One process, from disk to disk."""
    out = bench.out("threads")
    reading = measure(bench.command(out))
    bench.expected = digests(out)
    return {**figures(reading), **bench.check(digests(out))}


def disk_s3(bench: Bench) -> dict[str, object]:
    """From disk to S3."""
    with servers.s3("bkt") as environment:
        staging = bench.out("disk-s3")
        peak = _Peak(staging)
        reading = measure(
            bench.command("s3://bkt/out/mixed", "--staging", staging, "--json"), environment
        )
        _search(reading.output, bench)
        return {
            **figures(reading),
            **bench.check(_downloaded(environment, "out/mixed/", bench)),
            "peak_staging_bytes": peak.stop(),
            "largest_shard_bytes": max(
                p.stat().st_size for p in (bench.folder / "threads").rglob("*.safetensors")
            ),
        }


def s3_s3(bench: Bench) -> dict[str, object]:
    """From S3 to S3; the bytes that the server sent of each source, over its size."""
    with servers.s3("bkt") as environment:
        client = _client(environment)
        sizes = {}
        for path in sorted((bench.folder / "in").rglob("*")):
            if path.is_file():
                name = path.relative_to(bench.folder).as_posix()
                client.upload_file(str(path), "bkt", name)
                sizes[name] = path.stat().st_size
        staging = bench.out("s3-s3")
        command = bench.command("s3://bkt/out/mixed", "--staging", staging, sources="s3://bkt/in")
        reading = measure(command, environment)
        _search(reading.output, bench)
        sent = servers.counts(environment)
        shares = {
            kind: sum(c for path, c in sent.items() if path.startswith(f"/bkt/in/{kind}/"))
            / sum(size for name, size in sizes.items() if name.startswith(f"in/{kind}/"))
            for kind in ("base", "post", "new")
        }
        found = _downloaded(environment, "out/mixed/", bench)
        return {**figures(reading), **bench.check(found, True), "read_shares": shares}


def disk_azure(bench: Bench) -> dict[str, object]:
    """From disk to Azure's emulator."""
    import obstore
    from obstore.store import AzureStore

    with servers.azure("container", bench.out("azurite").parent) as environment:
        staging = bench.out("disk-azure")
        command = bench.command("az://container/out/mixed", "--staging", staging)
        reading = measure(command, environment)
        _search(reading.output, bench)
        store = AzureStore(
            "container",
            account_name=servers.ACCOUNT,
            account_key=servers.KEY,
            endpoint=environment["AZURE_STORAGE_ENDPOINT"],
            client_options={"allow_http": True},
        )
        found = {}
        for page in obstore.list(store, "out/mixed/"):
            for meta in page:
                digest = hashlib.sha256(obstore.get(store, meta["path"]).bytes())
                found[meta["path"].removeprefix("out/mixed/")] = digest.hexdigest()
        return {**figures(reading), **bench.check(found)}


def slurm(bench: Bench) -> dict[str, object]:
    """The example of examples/cluster with a Slurm of one node."""

    out = bench.out("slurm")
    program = out.parent / "bin" / "paramdelta"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nPYTHONPATH={ROOT / 'src'} PARAMDELTA_CHECK=0 exec {sys.executable} "
        "-c 'from paramdelta.cli.app import main; main()' \"$@\"\n"
    )
    program.chmod(0o755)
    recipe = out.parent / "recipe.yaml"
    places = {name: str(bench.folder / "in" / name) for name in ("post", "base", "new")}
    recipe.write_text(
        f"new_base: {places['new']}\ndeltas:\n  - {{post: {places['post']}, "
        f"base: {places['base']}}}\n"
    )
    with running_slurm(out.parent / "daemons") as environment:
        environment = {**environment, "PATH": f"{program.parent}:{environment['PATH']}"}
        began = time.perf_counter()
        script = ROOT / "examples" / "cluster" / "slurm.sh"
        subprocess.run(
            [script, recipe, out, "--shard-size", SHARD],
            env=environment,
            cwd=out.parent,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        finished(environment)
        wall = time.perf_counter() - began
    return {"wall_s": wall, **bench.check(digests(out))}


def ray(bench: Bench) -> dict[str, object]:
    """A cluster of two nodes."""
    return {**_on_ray(bench.folder, "ray", SHARD, 1, False)}


def killed_nodes(bench: Bench) -> dict[str, object]:
    """Twenty runs on small checkpoints, each of which loses a node at a random time."""
    small = bench.folder / "small"
    make(small / "in", SMALL)
    return _on_ray(small, "killed-nodes", SMALL_SHARD, 20, True)


def _on_ray(folder: Path, row: str, shard: str, runs: int, lose: bool) -> dict[str, object]:
    shutil.rmtree(folder / row, ignore_errors=True)
    (folder / row).mkdir()
    program = os.environ.get("RAY_PYTHON", sys.executable)
    command = [program, "-m", "benchmarks.lost_nodes", str(folder), row, shard, str(runs)]
    environment = {**os.environ, **UNCHECKED, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    subprocess.run([*command, str(int(lose))], cwd=ROOT, env=environment, check=True)
    return json.loads((folder / row / "report.json").read_text())


def killed_parts(bench: Bench) -> dict[str, object]:
    """Parts that are killed at a random time and run again, until twenty were hit."""
    struck = rounds = 0
    while struck < 20:
        rounds += 1
        out = bench.out("killed-parts")
        for number in range(1, 5):
            part = bench.command(out, "--part", f"{number}/4")
            for attempt in range(9):
                child = subprocess.Popen(
                    part,
                    cwd=ROOT,
                    env={**os.environ, **UNCHECKED, "PYTHONPATH": str(ROOT / "src")},
                    stdout=subprocess.DEVNULL,
                )
                if attempt < 2:
                    _wait_for_shard(child, out.parent)
                    time.sleep(random.uniform(0, 0.3))
                    child.send_signal(signal.SIGKILL)
                if child.wait() == 0:
                    break
                struck += 1
            else:
                raise SystemExit("a part does not come to its end")
        measure(bench.command(out, "--finish"))
        bench.check(digests(out))
        left = [path.name for path in out.parent.iterdir() if path != out]
        if left:
            raise SystemExit(f"left behind: {left}")
    return {"killed": struck, "runs": rounds, **bench.check(digests(out))}


class _Peak:
    """The largest size of a folder on the disk, sampled."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most, self.over = folder, 0, threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def stop(self) -> int:
        """End it; bytes."""
        self.over.set()
        self.thread.join()
        return self.most

    def _sample(self) -> None:
        while not self.over.wait(0.02):
            size = 0
            for path in self.folder.rglob("*"):
                with contextlib.suppress(OSError):
                    size += path.stat().st_blocks * 512
            self.most = max(self.most, size)


def _wait_for_shard(child: subprocess.Popen, folder: Path) -> None:
    """Until a part makes its first shard: the imports before it take most of the time."""
    while child.poll() is None and not list(
        folder.glob(".mixed.paramdelta-parts/paramdelta-*/*.part")
    ):
        time.sleep(0.01)


def _client(environment: dict[str, str]):
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


def _downloaded(environment: dict[str, str], prefix: str, bench: Bench) -> dict[str, str]:
    """SHA-256 of every object below a prefix, none of which has a secret in it."""
    client, found = _client(environment), {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="bkt", Prefix=prefix):
        for entry in page["Contents"]:
            data = client.get_object(Bucket="bkt", Key=entry["Key"])["Body"].read()
            if any(secret.encode() in data for secret in bench.secrets):
                raise SystemExit(f"a secret in {entry['Key']}")
            found[entry["Key"].removeprefix(prefix)] = hashlib.sha256(data).hexdigest()
    return found


def _search(text: str, bench: Bench) -> None:
    if any(secret in text for secret in bench.secrets):
        raise SystemExit("a secret in what the command printed")


ROWS = {
    "threads": in_threads,
    "disk-s3": disk_s3,
    "s3-s3": s3_s3,
    "disk-azure": disk_azure,
    "slurm": slurm,
    "ray": ray,
    "killed-parts": killed_parts,
    "killed-nodes": killed_nodes,
}


def table(report: dict) -> str:
    """The rows in Markdown."""
    lines = [
        "| | identical files | seconds | peak RSS [MB] | read of each source |",
        "|---|---|---|---|---|",
    ]
    for row, name in NAMES.items():
        found = report["rows"].get(row)
        if found is None:
            continue
        rss = f"{found['peak_rss_bytes'] / 1e6:.0f}" if "peak_rss_bytes" in found else ""
        shares = found.get("read_shares", {}).values()
        lines.append(
            f"| {name} | {found['identical']} of {found['files']} | "
            + (f"{found['wall_s']:.1f}" if "wall_s" in found else "")
            + f" | {rss} | "
            + (f"{max(shares):.3f} ×" if shares else "")
            + " |"
        )
    return "\n".join(lines)


def page(text: str, report: dict) -> str:
    """The page with its table."""
    head, _, rest = text.partition("<!-- anywhere -->\n")
    _, end, tail = rest.partition("<!-- /anywhere -->")
    return f"{head}<!-- anywhere -->\n{table(report)}\n{end}{tail}"


def main() -> None:
    """Measure the rows that are asked for; the others stay as they are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", default=",".join(ROWS))
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    make(folder / "in", SHAPE, shard_size=120_000_000)
    absent = {
        "disk-azure": "" if servers.azurite() else "azurite (npm install azurite; AZURITE=…)",
        "slurm": why_not(),
    }
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    bench = Bench(folder)
    for row in dict.fromkeys(["threads", *options.rows.split(",")]):
        if absent.get(row):
            print(f"{row}: left out, without {absent[row]}")
            continue
        report["rows"][row] = ROWS[row](bench)
        print(row, report["rows"][row], flush=True)
        weights = (folder / "in" / "base").glob("*.safetensors")
        size = sum(path.stat().st_size for path in weights)
        report |= {"machine": describe(folder), "checkpoint_bytes": size, "shard": SHARD}
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        PAGE.write_text(page(PAGE.read_text(), report))


if __name__ == "__main__":
    main()
