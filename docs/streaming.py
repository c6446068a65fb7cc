"""Writes the measured part of docs/streaming.md from results: `python docs/streaming.py`."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "streaming.md"
RESULTS = ROOT / "benchmarks" / "results"
MARKS = "<!-- measured -->", "<!-- /measured -->"
SIZE = 2 * 70.6e9  # bytes of Llama-70B in BF16
# Cores, bytes a second of the network, US dollars an hour: of usual machines for rent.
MACHINES = ((2, 1e9 / 8, 0.10), (16, 25e9 / 8, 0.80))

PAGE_TEXT = """
On {cores} cores ({cpu}) that were busy with other work, against a small Hub on the same machine;
three models of {each:.0f} MB ([results](../benchmarks/results/streaming.json),
`make bench-streaming`):

{table}

Streaming over loopback is slower than reading a disk because the server takes its processor time
from the same cores, and because each byte passes through a socket and is copied twice more. On a
network, the wire is the limit.

{faults[runs]} runs with {injected} random faults, {faults[pushed]} of them pushes, of which
{faults[killed_and_continued]} were killed and continued: identical weight files
([results](../benchmarks/results/hubtorture.json), `make torture-hub`).

Processor time for 1 GB in ranges of 8 MiB, by four threads:

{clients}

So ranges are read through `http.client`, from the Hub's HTTP bridge. hf_xet's ranged streams need
more processor time for the same bytes even without a network.

On paper, from these figures: Llama-70B, three sources and an output of 141 GB each, Hub → Hub. The
processor time of an upload is taken to be that of a download by hf_xet. The Hub's own limits are
not known here.

{paper}
"""


def measured() -> str:
    """The text and its tables, as Markdown."""
    found, faults = _read("streaming"), _read("hubtorture")
    machine = found["machine"]
    return PAGE_TEXT.strip().format(
        cores=machine["cores"],
        cpu=machine["cpu"],
        each=found["bytes_of_sources"] / 3e6,
        table=_table(("measured", ""), _measured(found)),
        faults=faults,
        injected=sum(faults["faults"].values()),
        clients=_table(("client", "s"), _clients(found["clients"])),
        paper=_table(("machine", "network", "processor", "time", "cost"), _paper(found)),
    )


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured(found: dict[str, Any]) -> Iterable[tuple[str, str]]:
    limited, loopback, pushed = found["limited"], found["loopback"], found["pushed"]
    mixes = [*limited["mixes"], *loopback["mixes"], pushed]
    most = max(ratio for made in mixes for ratio in made["bytes_read_ratio"].values())
    asked = max(made["resolver_requests_per_shard"] for made in mixes)
    latency, rate = limited["latency_s"] * 1000, limited["rate_of_a_connection"] / 1e6
    where = f"{latency:.0f} ms a request, {rate:.0f} MB/s a connection: "
    share = f"{100 * limited['share_of_plain']:.0f} % of the plain download's speed"
    connections = limited["connections"]
    yield f"{where}a plain download, {connections} connections", _seconds(limited["plain_s"])
    yield f"{where}`snapshot_download`", f"{limited['snapshot_download_s']:.1f} s"
    yield f"{where}the mix, streaming", f"{_seconds(limited['mix_s'])}: {share}"
    cpu = f"{loopback['disk_cpu_s']:.1f} s of processor time"
    yield "no limits: the mix from disk", f"{_seconds(loopback['disk_s'])}, {cpu}"
    cpu = f"{loopback['mix_cpu_s']:.1f} s of processor time, without the server's"
    share = f"{loopback['share_of_disk']:.2f} × the speed from disk"
    yield "no limits: the mix, streaming", f"{_seconds(loopback['mix_s'])}, {cpu}; {share}"
    rss = max(made["rss"] for made in limited["mixes"]) / 1e6
    yield "peak memory of the process, Hub → disk", f"{rss:.0f} MB"
    yield "peak memory of the process, Hub → Hub", f"{pushed['rss'] / 1e6:.0f} MB"
    yield "peak disk, Hub → Hub", f"{pushed['disk_in_shards']:.1f} shards"
    yield "requests to the Hub for one weight file", f"{asked:.0f}"
    yield "bytes read of a source, plan included", f"at most {most:.3f} × its size"
    for size, plan in found["plans"].items():
        counts = plan["requests"]
        what = f"plan over three {size}-shaped repositories ({plan['shards']} files) at 50 ms"
        hub = counts["api"] + counts["resolve"]
        requests = f"{hub} requests to the Hub and {counts['cdn']} to the CDN"
        read, memory = f"{plan['fetched'] / 1e6:.0f} MB", f"{plan['rss'] / 1e6:.0f} MB of memory"
        yield what, f"{plan['wall']:.1f} s; {read} in {requests}; {memory}"


def _seconds(rounds: list[float]) -> str:
    return f"{median(rounds):.1f} s"


def _clients(found: dict[str, float]) -> Iterable[tuple[str, str]]:
    names = {"hf_xet": "hf_xet, from a store on this disk, without a network"}
    for name, seconds in sorted(found.items(), key=lambda item: item[1]):
        yield names.get(name, name), f"{seconds:.1f}"


def _paper(found: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    cpu = found["loopback"]["mix_cpu_s"] / found["bytes_of_sources"]
    upload = found["clients"]["hf_xet"] / 1e9
    for cores, rate, dollars in MACHINES:
        network = 3 * SIZE / rate  # what goes up goes at the same time
        processor = (3 * cpu + upload) * SIZE / cores
        time = max(network, processor)
        yield (
            f"{cores} cores, {rate * 8 / 1e9:.0f} Gbit/s, {dollars:.2f} $ an hour",
            f"{network / 60:.0f} min",
            f"{processor / 60:.0f} min",
            f"{time / 60:.0f} min",
            f"{time / 3600 * dollars:.2f} $",
        )


def render() -> str:
    """The whole page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{measured()}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
