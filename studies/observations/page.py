"""The tables of docs/analyze.md, made of the results of the analyses and of a benchmark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from studies.pages import table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "analyze.md"
RESULTS = ROOT / "docs" / "analyze" / "observations.json"
BENCHMARK = ROOT / "benchmarks" / "results" / "analysis.json"


def rendered(text: str) -> str:
    """The page with every table as the results give it."""
    for name, made in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        text = re.sub(
            re.escape(start) + ".*?" + re.escape(end),
            lambda _, made=made, start=start, end=end: start + made() + end,
            text,
            flags=re.DOTALL,
        )
    return text


def write_tables() -> None:
    """Write the tables into the page."""
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def results() -> dict:
    """What the analyses gave, by lineage."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["results"]


def deltas_table() -> str:
    """A row for each Δ of a real lineage."""
    rows = []
    for key, found in results().items():
        if key.startswith("control"):
            continue
        for each in found["deltas"]:
            row = [
                found["name"],
                each["post"],
                _percent(each["relative"]),
                _number(each["shift ratio"], ".2f"),
                _number(each["shift cosine"], ".3f"),
                _range(each["least cosine of a weight"], each["most cosine of a weight"]),
                _number(each["layers most / least"], ".2f"),
                _number(each["weights most / least"], ".1f"),
                _percent(each["energy in rank 16"], ".0f"),
                _number(each["stable rank"], ".1f"),
            ]
            rows.append(row)
    head = (
        "lineage", "post", "‖Δ‖ / ‖Θ_base‖", "‖S‖ / ‖Δ‖", "cosine of Δ and S", "of single weights",
        "layers, most / least", "weights, most / least", "energy in rank 16", "stable rank",
    )  # fmt: skip
    return table(head, rows)


def pairs_table() -> str:
    """A row for each two Δs."""
    rows = []
    for found in results().values():
        for pair in found["pairs"]:
            kinds = {k: c for k, c in pair["kinds"].items() if c is not None and k != "norm"}
            least, most = min(kinds, key=kinds.get), max(kinds, key=kinds.get)
            rows.append(
                [
                    found["name"],
                    " and ".join(found["deltas"][pair[i]]["post"] for i in ("one", "two")),
                    _number(pair["cosine"], ".3f"),
                    _percent(pair["agreement"]),
                    f"{kinds[least]:.3f} in {least}, {kinds[most]:.3f} in {most}",
                    _number(pair["profiles"], ".2f"),
                ]
            )
    head = ("lineage", "posts", "cosine", "equal signs", "least and most by kind",
            "rank correlation of sizes")  # fmt: skip
    return table(head, rows)


def controls_table() -> str:
    """A row for each control."""
    rows = [
        [
            found["name"],
            _number(found["deltas"][0]["bases"], ".3f"),
            ", ".join(f"`{code}`" for code in found["flags"]) or "none",
        ]
        for key, found in results().items()
        if key.startswith("control")
    ]
    return table(("control", "cosine of Θ_base and Θ'_base", "flags"), rows)


def cost_table() -> str:
    """Time and memory beside a mix."""
    report = json.loads(BENCHMARK.read_text(encoding="utf-8"))
    rows = [
        [
            name,
            f"{row['wall_s']:.1f} ({row['wall_s_least']:.1f} to {row['wall_s_most']:.1f})",
            f"{row['wall_times_mix']:.2f}",
            f"{row['cpu_s'] / report['summary']['mix']['cpu_s']:.2f}",
            f"{row['peak_times_mix']:.2f}",
        ]
        for name, row in report["summary"].items()
    ]
    machine = report["machine"]
    caption = (
        f"{report['parameters'] / 1e9:.1f} B parameters in BF16, three checkpoints in the page "
        f"cache; medians of {report['rounds']} rounds, in turns; {machine['cpu']}, "
        f"{machine['cores']} cores.\n"
    )
    head = ("", "seconds (least to most)", "time, × mix", "CPU time, × mix", "peak memory, × mix")
    return f"{table(head, rows)}\n{caption}"


TABLES: dict[str, Callable[[], str]] = {
    "deltas": deltas_table,
    "pairs": pairs_table,
    "controls": controls_table,
    "cost": cost_table,
}


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _percent(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None else f"{100 * value:{form}} %"


def _range(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"
