"""Writes the tables of docs/study.md from the study's JSON: `python -m studies.transfer.page`.

The page's prose is written by hand; between the marks `<!-- table: NAME -->` and
`<!-- end -->` stands what this module makes.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from studies.transfer import summary
from studies.transfer.figures import interval

_MARK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_interval(value: tuple[float, float] | None) -> str:
    """ "97.1 ± 1.2", or "97.1" if there was one seed, or a dash if there is no value."""
    if value is None:
        return "–"
    mean, half = value
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2g}"


def headline(folder: Path, part: str = "scenarios") -> str:
    """Every scenario: mean scores, transfer efficiency, γ."""
    results = summary.load(folder, part)
    rows = []
    for name in summary.scenario_names(results):
        chosen = summary.of_scenario(results, name)
        slope, fit = summary.gamma_of(chosen)
        rows.append(
            [
                name,
                *(with_interval(summary.model_average(chosen, m)) for m in summary.MODELS),
                "**" + with_interval(interval(summary.efficiencies(chosen))) + "**",
                f"{slope:.3f}",
                f"{fit:.2f}",
            ]
        )
    return table(["scenario", *summary.MODELS, "transfer efficiency, %", "γ", "R²"], rows)


def by_task(folder: Path) -> str:
    """Every task of every scenario: mean scores over seeds, efficiency."""
    results = summary.load(folder, "scenarios")
    rows = []
    for name in summary.scenario_names(results):
        chosen = summary.of_scenario(results, name)
        for task in chosen[0]["tasks"]:
            means = summary.task_figures(chosen, task)
            cells = [f"{means[m]:.1f}" if m in means else "–" for m in summary.MODELS]
            kept = means["efficiency"]
            rows.append([name, task, *cells, "–" if math.isnan(kept) else f"{kept:.0f}"])
    return table(["scenario", "task", *summary.MODELS, "efficiency, %"], rows)


def alphas(folder: Path) -> str:
    """Transfer efficiency at every α."""
    results = summary.load(folder, "scenarios")
    names = summary.scenario_names(results)
    curves = [summary.alpha_curve(summary.of_scenario(results, name)) for name in names]
    rows = [[f"{float(a):g}", *(f"{curve[a][0]:.1f}" for curve in curves)] for a in curves[0]]
    return table(["α", *names], rows)


def weights(folder: Path) -> str:
    """Transfer efficiency with two Δ at several pairs of weights."""
    chosen = [r for r in summary.load(folder, "scenarios") if "weights" in r]
    curve = summary.alpha_curve(chosen, "weights")
    return table(
        ["weights of the two Δ", "transfer efficiency, %"],
        [[pair, with_interval(value)] for pair, value in curve.items()],
    )


def continued(folder: Path) -> str:
    """Every continued base: how far it moved, and what was transferred (means over seeds)."""
    points = summary.load(folder, "distance")
    rows = []
    for rate, steps in sorted({(p["rate"], p["steps"]) for p in points}):
        chosen = [p for p in points if (p["rate"], p["steps"]) == (rate, steps)]

        def mean(values: list[float]) -> float:
            return sum(values) / len(values)

        rows.append(
            [
                f"{rate:g}",
                f"{chosen[0]['multiple']:g} ×",
                *(
                    f"{mean([p['measures'][name] for p in chosen]):.3f}"
                    for name in ("shift / delta", "cosine", "barrier")
                ),
                *(
                    f"{mean([p['scores'][model] for p in chosen]):.1f}"
                    for model in ("ParamΔ", "direct")
                ),
                f"{mean([p['efficiency'] for p in chosen]):.1f}",
            ]
        )
    head = ["rate", "steps", "shift / Δ", "cosine", "barrier", "ParamΔ", "direct", "efficiency, %"]
    return table(head, rows)


def predictors(folder: Path) -> str:
    """Which of the things measurable beforehand foretells transfer."""
    points = summary.load(folder, "distance")
    found = summary.predictions(points) if points else {}
    rows = [
        [name, _number(f["rank"]), _number(f["whole below"]), _number(f["broken above"])]
        for name, f in found.items()
    ]
    head = ["predictor", "rank correlation", "all keep ≥ 95 % up to", "first below 50 % at"]
    return table(head, rows)


def cases(folder: Path, part: str, key: str) -> str:
    """Mean scores with a part left out, or of the controls."""
    found = summary.score_table(summary.load(folder, part), key)
    rows = [[case, with_interval(value)] for case, value in found.items()]
    return table(["left out" if key == "without" else "Δ", "mean score, %"], rows)


def widths(folder: Path) -> str:
    """Scores and efficiency at every width."""
    results = summary.load(folder, "widths")
    rows = []
    for width in sorted({r["width"] for r in results}):
        chosen = [r for r in results if r["width"] == width]
        averages = (summary.model_average(chosen, m) for m in ("ParamΔ", "direct"))
        rows.append(
            [
                str(width),
                *(with_interval(a) for a in averages),
                with_interval(interval(summary.efficiencies(chosen))),
            ]
        )
    return table(["width", "ParamΔ", "direct", "transfer efficiency, %"], rows)


def circumstances(folder: Path) -> str:
    """How each part was run."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        made = record["versions"]
        rows.append(
            [
                f"[{path.name}](study/{path.name})",
                f"`{record['command']}`",
                f"{record['processor']}, {record['device']}, {record['threads']} thread",
                f"Python {made['python']}, torch {made['torch']}",
            ]
        )
    return table(["results", "command", "machine", "versions"], rows)


TABLES: dict[str, Callable[[Path], str]] = {
    "headline": headline,
    "final": lambda folder: headline(folder, "final"),
    "by-task": by_task,
    "alphas": alphas,
    "weights": weights,
    "continued": continued,
    "predictors": predictors,
    "parts": lambda folder: cases(folder, "parts", "without"),
    "controls": lambda folder: cases(folder, "controls", "controls"),
    "widths": widths,
    "circumstances": circumstances,
}


def filled(page: str, folder: Path) -> str:
    """The page with every table made anew."""
    return _MARK.sub(lambda m: f"{m[1]}{TABLES[m[2]](folder)}{m[3]}", page)


def main() -> None:
    """Write the tables into the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.transfer.page", description=__doc__)
    parser.add_argument("--page", type=Path, default=Path("docs/study.md"))
    parser.add_argument("--folder", type=Path, default=Path("docs/study"), help="with the JSON")
    options = parser.parse_args()
    page = options.page.read_text(encoding="utf-8")
    options.page.write_text(filled(page, options.folder), encoding="utf-8")


if __name__ == "__main__":
    main()
