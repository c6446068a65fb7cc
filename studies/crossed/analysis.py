"""The registered measures, from the JSON of the seeds: `python -m studies.crossed.analysis`."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from studies.transfer.figures import interval

LEAST_DIRECT = 20.0  # percent: below it, the gap closed on a group of skills means nothing


def read(folder: Path, part: str) -> list[dict]:
    """The results of a part, a seed each, in the order of the seeds."""
    paths = sorted(folder.glob(f"seed-*-{part}.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def cell_of(result: dict, shift: int, steps: int) -> dict:
    """{role: scores} of one cell of one seed."""
    cell = next(c for c in result["cells"] if (c["shift"], c["delta"]) == (shift, steps))
    return {
        "base": result["base"],
        "post": result["post"][str(steps)],
        "new base": result["new base"][str(shift)],
        "ParamΔ": cell["ParamΔ"],
        "direct": cell["direct"],
    }


def gain(roles: dict, role: str = "ParamΔ") -> float:
    """overall(role) − max(overall(post), overall(new base)), in points."""
    return roles[role]["overall"] - max(roles["post"]["overall"], roles["new base"]["overall"])


def gap_closed(roles: dict, group: str) -> float:
    """(ParamΔ − new base) / (direct − new base) on a group; NaN if direct is below 20 %."""
    direct, start = roles["direct"][group], roles["new base"][group]
    if direct < LEAST_DIRECT or direct <= start:
        return math.nan
    return (roles["ParamΔ"][group] - start) / (direct - start)


def slopes(result: dict) -> tuple[float, float]:
    """(b, c): capped ParamΔ / direct = a + b · log ‖shift‖ + c · log ‖Δ‖ over a seed's cells."""
    rows, kept = [], []
    for cell in result["cells"]:
        shift = result["shift norm"][str(cell["shift"])]
        length = result["delta norm"][str(cell["delta"])]
        rows.append([1.0, math.log(shift), math.log(length)])
        kept.append(min(1.0, cell["ParamΔ"]["overall"] / max(cell["direct"]["overall"], 1e-9)))
    found = np.linalg.lstsq(np.array(rows), np.array(kept), rcond=None)[0]
    return float(found[1]), float(found[2])


def primary(results: Sequence[dict], shift: int, steps: int) -> dict[str, tuple[float, float]]:
    """{measure: (mean, half-width of the 95 % interval)} over seeds, in the middle cell."""
    cells = [cell_of(result, shift, steps) for result in results]
    both = [slopes(result) for result in results]
    inside = [gap_closed(cell, "skills in") - gap_closed(cell, "skills out") for cell in cells]
    counted = [value for value in inside if not math.isnan(value)]
    return {
        "gain": interval([gain(cell) for cell in cells]),
        "direct's gain": interval([gain(cell, "direct") for cell in cells]),
        "b": interval([b for b, _ in both]),
        "c": interval([c for _, c in both]),
        "b + c": interval([b + c for b, c in both]),
        "in − out": interval(counted) if counted else (math.nan, math.nan),
        "seeds left out of in − out": (len(inside) - len(counted), math.nan),
    }


def several(results: Sequence[dict]) -> dict[str, tuple[float, float]]:
    """{mix: overall score minus that of the sum}: mean, half-width of the 99 % interval."""
    found = {}
    for name in results[0]["mixes"]:
        if name != "sum":
            values = [r["mixes"][name]["overall"] - r["mixes"]["sum"]["overall"] for r in results]
            found[name] = (statistics.fmean(values), half_width_99(values))
    return found


def half_width_99(values: Sequence[float]) -> float:
    """Half-width of the 99 % interval (95 % corrected for five comparisons), Student's t."""
    points = (63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250)
    if len(values) < 2:
        return math.nan
    t = points[min(len(values) - 2, len(points) - 1)]
    return t * statistics.stdev(values) / math.sqrt(len(values))


def main() -> None:
    """Print the registered measures."""
    parser = argparse.ArgumentParser(prog="python -m studies.crossed.analysis", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("docs/study-crossed"))
    parser.add_argument("--shift", type=int, default=400)
    parser.add_argument("--delta", type=int, default=450)
    options = parser.parse_args()
    cells, mixes = read(options.folder, "cells"), read(options.folder, "several")
    if not cells:
        raise SystemExit(f"{options.folder} has no results; run python -m studies.crossed first.")
    print(f"{len(cells)} seeds")
    for name, (mean, half) in primary(cells, options.shift, options.delta).items():
        print(f"{name}: {mean:.3f} ± {half:.3f}")
    if mixes:
        for name, (mean, half) in several(mixes).items():
            print(f"{name} − sum: {mean:.2f} ± {half:.2f} (99 %)")


if __name__ == "__main__":
    main()
