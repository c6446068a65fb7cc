"""Reads models from a small Hub on this machine and writes benchmarks/results/streaming.json.

    python -m benchmarks.streaming DIR [--rounds 3]

The server is `tests.hubserver`: it adds 50 ms to each request and limits each connection. Measured
in turns: a plain parallel download by as many connections, and a mix that streams; on loopback
without limits, a mix from disk and one that streams. Also: disk and memory that mixes need,
requests and bytes counted at the server, plans over 70B- and 405B-shaped repositories (files with
holes), and the processor time of several HTTP clients.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import make_checkpoints, make_sparse
from benchmarks.llama import SIZES, Llama
from benchmarks.machine import describe
from tests.hubserver import HubServer, OnDisk, repo

RESULTS = Path(__file__).parent / "results" / "streaming.json"
MODEL = Llama(hidden=1024, layers=16, intermediate=4096, heads=16, kv_heads=4, vocab=32000)
SHARD = 100_000_000
LATENCY = 0.05
RATE = 4_000_000  # bytes a second of one connection
CONNECTIONS = 16
KINDS = ("new", "post", "base")

MIX = """
import json, sys, time, paramdelta
delta = paramdelta.Delta(sys.argv[2], sys.argv[3])
plan = paramdelta.plan(paramdelta.Recipe(sys.argv[1], (delta,)))
began = time.perf_counter()
paramdelta.mix(plan, sys.argv[4], shard_size=sys.argv[5])
print(json.dumps({"seconds": time.perf_counter() - began, "fetched": plan.fetched}))
"""
DOWNLOAD = """
import http.client, json, queue, sys, threading, time, urllib.parse
url, connections, files = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
host = urllib.parse.urlsplit(url).netloc
work, step = queue.SimpleQueue(), 32 << 20
for path, size in files:
    for at in range(0, size, step):
        work.put((path, at, min(at + step, size)))
def run():
    connection, buffer = http.client.HTTPConnection(host), memoryview(bytearray(1 << 20))
    while True:
        try:
            path, start, stop = work.get_nowait()
        except queue.Empty:
            return
        connection.request("GET", path, headers={"Range": f"bytes={start}-{stop - 1}"})
        answer = connection.getresponse()
        while answer.readinto(buffer):
            pass
began = time.perf_counter()
threads = [threading.Thread(target=run) for _ in range(connections)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps({"seconds": time.perf_counter() - began}))
"""
SNAPSHOT = """
import json, sys, time
from huggingface_hub import snapshot_download
began = time.perf_counter()
for name in sys.argv[1:]:
    snapshot_download(name)
print(json.dumps({"seconds": time.perf_counter() - began}))
"""
CLIENTS = {
    "http.client": """
import http.client, urllib.parse
from concurrent.futures import ThreadPoolExecutor
import threading
own = threading.local()
def get(start, stop):
    if not hasattr(own, "it"):
        own.it = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc)
    own.it.request("GET", path, headers={"Range": f"bytes={start}-{stop - 1}"})
    answer, into, done = own.it.getresponse(), memoryview(bytearray(stop - start)), 0
    while done < len(into):
        done += answer.readinto(into[done:])
""",
    "httpx2": """
import httpx2
client = httpx2.Client(timeout=60)
def get(start, stop):
    into, done = memoryview(bytearray(stop - start)), 0
    with client.stream("GET", url + path, headers={"Range": f"bytes={start}-{stop - 1}"}) as answer:
        for piece in answer.iter_raw():
            into[done : done + len(piece)] = piece
            done += len(piece)
""",
    "obstore": """
import obstore
from obstore.store import HTTPStore
store = HTTPStore(url, client_options={"allow_http": True})
def get(start, stop):
    into = memoryview(bytearray(stop - start))
    into[:] = memoryview(obstore.get_range(store, path[1:], start=start, end=stop))
""",
}
CLIENT = """
import json, os, resource, sys, time
from concurrent.futures import ThreadPoolExecutor
url, path, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
{}
get(0, 1000)
def spent():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
before, step = spent(), 8 << 20
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda at: get(at, min(at + step, size)), range(0, size, step)))
print(json.dumps({{"cpu": spent() - before}}))
"""
XET = """
import json, os, resource, sys
from concurrent.futures import ThreadPoolExecutor
import hf_xet
source, folder = sys.argv[1], sys.argv[2]
size, place, step = os.path.getsize(source), f"local://{folder}", 8 << 20
upload = '''
import sys, hf_xet
with hf_xet.XetSession().new_upload_commit(endpoint=sys.argv[2]) as commit:
    stream = commit.start_upload_stream(name="x")
    with open(sys.argv[1], "rb") as file:
        while piece := file.read(1 << 20):
            stream.write(piece)
    print(stream.finish().xet_info.hash)
'''
import subprocess
command = [sys.executable, "-c", upload, source, place]
found = subprocess.run(command, capture_output=True, text=True)
info = hf_xet.XetFileInfo(found.stdout.strip(), size)
small = {
    "reconstruction.download_buffer_size": 64_000_000,
    "reconstruction.download_buffer_perfile_size": 16_000_000,
    "reconstruction.download_buffer_limit": 96_000_000,
    "reconstruction.min_prefetch_buffer": 32_000_000,
    "reconstruction.min_reconstruction_fetch_size": 32_000_000,
}
session = hf_xet.XetSession(hf_xet.XetConfig().with_config(small))
group = session.new_download_stream_group(endpoint=place)
def get(at):
    into, done = memoryview(bytearray(min(step, size - at))), 0
    for piece in group.download_stream(info, start=at, end=at + len(into)):
        into[done : done + len(piece)] = piece
        done += len(piece)
def spent():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
get(0)
before = spent()
with ThreadPoolExecutor(4) as pool:
    list(pool.map(get, range(0, size, step)))
print(json.dumps({"cpu": spent() - before}))
"""


class DiskPeak(threading.Thread):
    """The most bytes that some folders took together, looked at every 50 ms."""

    def __init__(self, *folders: Path) -> None:
        super().__init__(daemon=True)
        self.folders, self.most, self.over = folders, 0, threading.Event()

    def run(self) -> None:
        """Look until `over`."""
        while not self.over.wait(0.05):
            self.most = max(self.most, sum(map(_taken, self.folders)))


def _taken(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it is gone
                total += os.lstat(f"{root}/{name}").st_blocks * 512
    return total


def child(code: str, *arguments: object, env: dict[str, str] | None = None) -> dict[str, Any]:
    """What a Python program prints as JSON, with its wall time, peak memory and processor time."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a measured program ended with {process.returncode}: {text}")
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    found["wall"] = time.perf_counter() - began
    found["rss"] = usage.ru_maxrss * 1024
    found["total_cpu"] = usage.ru_utime + usage.ru_stime
    return found


def repos(folder: Path) -> dict[str, Any]:
    """The checkpoints of a folder as repositories."""
    found = {}
    for kind in KINDS:
        files = {
            path.name: OnDisk(path) if path.suffix == ".safetensors" else path.read_bytes()
            for path in sorted((folder / kind).iterdir())
        }
        found[f"org/{kind}"] = repo(files)
    return found


class Bench:
    """The measurements. ``folder``: room for models and outputs, 5 GB."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self.models = folder / "models"
        self.out = folder / "out"
        self.home, self.temporary = folder / "home", folder / "tmp"
        make_checkpoints.make(self.models, MODEL, shard_size=SHARD)
        self.size = sum(path.stat().st_size for path in self.models.rglob("*.safetensors"))

    def environment(self, server: HubServer) -> dict[str, str]:
        """Of a client that has nothing."""
        for path in (self.out, self.home, self.temporary):
            shutil.rmtree(path, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        own = {"TMPDIR": str(self.temporary), "PARAMDELTA_CHECK": "0"}
        return {**server.environment(self.home), **own}

    def mix(self, server: HubServer, out: object = None, shard: int = SHARD) -> dict[str, Any]:
        """A mix that streams; what it took, and what the server counted."""
        env = self.environment(server)
        server.reset_counts()
        disk = DiskPeak(self.home, self.temporary, self.out)
        disk.start()
        found = child(MIX, *(f"org/{kind}" for kind in KINDS), out or self.out, shard, env=env)
        disk.over.set()
        shards = sum(1 for _ in self.models.rglob("*.safetensors"))
        resolved = [p for kind, p in server.requests if kind == "resolve" and "safetensors" in p]
        sizes = {
            f"org/{path.parent.name}/{path.name}": path.stat().st_size
            for path in self.models.rglob("*.safetensors")
        }
        return found | {
            "disk": disk.most,
            "resolver_requests_per_shard": len([p for p in resolved if "index" not in p]) / shards,
            "bytes_read_ratio": {
                kind: sum(server.bytes[n] for n in sizes if f"/{kind}/" in n)
                / sum(size for n, size in sizes.items() if f"/{kind}/" in n)
                for kind in KINDS
            },
        }

    def limited(self) -> dict[str, Any]:
        """50 ms and a limited bandwidth of each connection."""
        plain, streamed = [], []
        with HubServer(repos(self.models), latency=LATENCY, rate=RATE) as server:
            for _ in range(self.rounds):
                env = self.environment(server)
                files = []
                for path in self.models.rglob("*.safetensors"):
                    place = f"/cdn/org/{path.parent.name}/{'a' * 40}/{path.name}"
                    files.append((f"{place}?sig=secret-signature&n=0", path.stat().st_size))
                server.uses[0] = 0
                plain.append(child(DOWNLOAD, server.url, CONNECTIONS, json.dumps(files), env=env))
                streamed.append(self.mix(server))
            snapshot = child(SNAPSHOT, *(f"org/{k}" for k in KINDS), env=self.environment(server))
        return {
            "latency_s": LATENCY,
            "rate_of_a_connection": RATE,
            "connections": CONNECTIONS,
            "plain_s": [found["seconds"] for found in plain],
            "mix_s": [found["seconds"] for found in streamed],
            "share_of_plain": _ratio(plain, streamed),
            "snapshot_download_s": snapshot["seconds"],
            "mixes": streamed,
        }

    def loopback(self) -> dict[str, Any]:
        """No limits: from disk and streamed."""
        local, streamed = [], []
        with HubServer(repos(self.models)) as server:
            for _ in range(self.rounds):
                env = self.environment(server)
                sources = [self.models / kind for kind in KINDS]
                local.append(child(MIX, *sources, self.out, SHARD, env=env))
                streamed.append(self.mix(server))
        return {
            "disk_s": [found["seconds"] for found in local],
            "mix_s": [found["seconds"] for found in streamed],
            "share_of_disk": _ratio(local, streamed),
            "disk_cpu_s": statistics.median(found["total_cpu"] for found in local),
            "mix_cpu_s": statistics.median(found["total_cpu"] for found in streamed),
            "mixes": streamed,
        }

    def pushed(self) -> dict[str, Any]:
        """From the Hub to the Hub: the disk holds shards on their way."""
        store = self.folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir()
        with HubServer(repos(self.models), store=store) as server:
            found = self.mix(server, "hf://me/mixed")
            made = server.repos["me/mixed"]
            refs = sorted(made.refs)
            shard = max(map(len, made.revisions[made.refs["main"]].values()))
        shutil.rmtree(store)
        return {"shard": shard, "disk_in_shards": found["disk"] / shard, "refs": refs, **found}

    def plans(self) -> dict[str, Any]:
        """Plans over files with holes."""
        found = {}
        for size in ("70B", "405B"):
            folder = self.folder / size
            if not folder.exists():
                make_sparse.make(folder, SIZES[size])
            with HubServer(repos(folder), latency=LATENCY) as server:
                env = self.environment(server)
                code = MIX.split("began")[0] + 'print(json.dumps({"fetched": plan.fetched}))'
                made = child(code, *(f"org/{kind}" for kind in KINDS), env=env)
                counts = {kind: server.count(kind) for kind in ("api", "resolve", "cdn")}
                made["shards"] = sum(1 for _ in folder.rglob("*.safetensors"))
            found[size] = {**made, "requests": counts}
        return found

    def clients(self) -> dict[str, float]:
        """Processor seconds of several clients for 1 GB in ranges of 8 MiB, by four threads."""
        path = max(self.models.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
        size, found = path.stat().st_size, {}
        with HubServer(repos(self.models)) as server:
            server.uses[0] = 0
            place = f"/cdn/org/{path.parent.name}/{'a' * 40}/{path.name}?sig=secret-signature&n=0"
            server.plain = True
            for name, code in CLIENTS.items():
                at = f"/org/{path.parent.name}/{path.name}" if name == "obstore" else place
                try:
                    made = [
                        child(
                            CLIENT.format(code), server.url, at, size, env=self.environment(server)
                        )
                        for _ in range(self.rounds)
                    ]
                except SystemExit as error:
                    print(name, error)
                    continue
                found[name] = statistics.median(m["cpu"] for m in made) * 1e9 / size
            env = self.environment(server)
        cas = self.folder / "cas"
        cas.mkdir(exist_ok=True)
        made = [child(XET, path, cas, env=env) for _ in range(self.rounds)]
        found["hf_xet"] = statistics.median(m["cpu"] for m in made) * 1e9 / size
        shutil.rmtree(cas)
        return found


def _ratio(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """The median of the ratios of the rounds."""
    pairs = zip(one, other, strict=True)
    return statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    bench = Bench(options.folder.resolve(), options.rounds)
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found["machine"] = describe(options.folder)
    found["bytes_of_sources"] = bench.size
    parts = ("plans", "clients", "limited", "loopback", "pushed")
    for part in options.only or parts:
        found[part] = getattr(bench, part)()
        print(part, json.dumps(found[part], indent=1))
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
