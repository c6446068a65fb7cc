"""The table of what a mix needs, from `flat.json`: `python -m benchmarks.resources`.

Writes docs/resources.md. Sizes follow from the parameters; memory and time are measured, for 405 B
they are carried on from 70 B.
"""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "resources.md"
BEYOND = 405_853_388_800  # parameters of Llama 3.1 405B
GB = 1e9
HEAD = """# What a mix needs

One Δ in BF16: three checkpoints are read, one is written.
Written by `python -m benchmarks.resources`.

| parameters | read [GB] | written, disk [GB] | plan [s] | computing [min] | memory [MB] |
|---:|---:|---:|---:|---:|---:|
"""
FOOT = """
Measured ([flat.json](../benchmarks/results/flat.json), `make bench-flat`) on {cpu}, {cores} cores,
with sparse files that hold no data on disk: this is what computing costs when the disk costs
nothing. The row for 405 B is carried on from 70 B and not measured. Your disk or network takes
longer: at 1 GB/s, reading 8 B parameters three times takes 48 s. Memory is the peak of the whole
process; `--memory` sets how much of it may be buffers, 256 MB by default.

Models on the Hub are read where they are, and need no room on the disk. With `--keep-downloads`
they need as much as is read.
"""


def render() -> str:
    """The page's text."""
    flat = json.loads((ROOT / "benchmarks" / "results" / "flat.json").read_text())
    rows = [(name, flat["sizes"][name]["parameters"], name) for name in ("1B", "8B", "70B")]
    lines = []
    for label, parameters, measured in [*rows, ("405B, carried on", BEYOND, "70B")]:
        found = flat["sizes"][measured]
        grown = parameters / found["parameters"]
        lines.append(
            f"| {label} | {6 * parameters / GB:.0f} | {2 * parameters / GB:.0f} "
            f"| {found['plan_s'] * grown:.2f} | {found['run_s'] * grown / 60:.1f} "
            f"| {found['peak_rss_bytes'] / 1e6:.0f} |\n"
        )
    machine = flat["machine"]
    return HEAD + "".join(lines) + FOOT.format(cpu=machine["cpu"], cores=machine["cores"])


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
