"""The README's benchmark tables in Markdown, printed from results/compare.json and flat.json.

python -m benchmarks.table
"""

import json

from benchmarks import compare, flat

NAMES = {
    "floor": "plain read and copy",
    "floor-fsync": "plain read and copy, synced",
    "paramdelta": "**paramdelta** (synced)",
    "mergekit": "mergekit",
    "mergekit-tuned": "mergekit, tuned",
}


def compared(report: dict) -> str:
    """Wall time, ratio, CPU, memory and agreement of every contender, warm and cold."""
    sizes, machine = report["checkpoints"], report["machine"]
    caches = list(report["summary"])
    head = ["", *(f"{c} [s]" for c in caches), *(f"{c}, × paramdelta" for c in caches)]
    head += ["CPU [s]", "peak RSS [MB]", "correctly rounded"]
    rows = []
    for name in report["summary"][caches[0]]:
        cells = [report["summary"][cache][name] for cache in caches]
        agreement = report["agreement"].get(name)
        rows.append(
            [
                NAMES[name],
                *(f"{cell['wall_s']:.1f}" for cell in cells),
                *(
                    f"{cell['times_paramdelta']:.2f}" if "times_paramdelta" in cell else ""
                    for cell in cells
                ),
                f"{cells[0]['cpu_s']:.1f}",
                f"{max(cell['peak_rss_bytes'] for cell in cells) / 1e6:.0f}",
                f"{100 * agreement['exact_share']:.1f} %" if agreement else "",
            ]
        )
    caption = (
        f"{sizes['bytes_in'] / 1e9:.1f} GB in, {sizes['bytes_out'] / 1e9:.1f} GB out, bf16; "
        f"median of {report['rounds']}, in turns; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['file_system']}."
    )
    return f"{_table(head, rows)}\n\n{caption}"


def flatness(report: dict) -> str:
    """Seconds per GB and peak memory of every size."""
    head = ["", "parameters [B]", "read and written [GB]", "plan [s]", "s/GB", "peak RSS [MB]"]
    rows = [
        [
            size,
            f"{row['parameters'] / 1e9:.2f}",
            f"{row['bytes'] / 1e9:.0f}",
            f"{row['plan_s']:.2f}",
            f"{row['run_s_per_gb']:.3f}",
            f"{row['peak_rss_bytes'] / 1e6:.0f}",
        ]
        for size, row in report["sizes"].items()
    ]
    return _table(head, rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def main() -> None:
    """Print the tables of the results that there are."""
    for results, table in ((compare.RESULTS, compared), (flat.RESULTS, flatness)):
        if results.exists():
            print(table(json.loads(results.read_text())), end="\n\n")


if __name__ == "__main__":
    main()
