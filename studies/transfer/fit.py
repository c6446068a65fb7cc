"""The fit behind `paramdelta analyze --predict`: `python -m studies.transfer.fit`.

Transfer against shift / Δ, from the 75 runs of section 3 of docs/study.md. No model is trained. The
coverage of the interval is measured on seeds that neither the fit nor the interval has seen.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from studies.transfer.figures import average, efficiency
from studies.transfer.summary import load

RESULTS = Path("docs/study")
TARGET = Path("src/paramdelta/analysis/fit.json")
LIMITS = (0.0, 0.3, 0.6, 1.0, 1.5, 2.0, 2.5)  # of shift / Δ, for a table of cases
LEVEL = 0.9  # of the interval

Point = tuple[int, float, float]  # seed, shift / Δ, transfer in percent of direct


def curve(ratio: float, middle: float, power: float) -> float:
    """Transfer in percent of direct: 100 where the new base did not move, 50 at ``middle``."""
    return 100 / (1 + (ratio / middle) ** power)


def fitted(points: Sequence[Point]) -> tuple[float, float]:
    """The least-squares ``(middle, power)``, on a grid that is refined three times."""
    x, y = (np.array([point[i] for point in points]) for i in (1, 2))
    low, high = np.array([0.2, 0.5]), np.array([4.0, 8.0])
    best = (1.0, 1.0)
    for _ in range(4):
        middles, powers = (np.linspace(low[i], high[i], 41) for i in (0, 1))
        made = 100 / (1 + (x / middles[:, None, None]) ** powers[None, :, None])
        errors = ((made - y) ** 2).sum(axis=2)
        i, j = np.unravel_index(int(errors.argmin()), errors.shape)
        best = (float(middles[i]), float(powers[j]))
        step = (high - low) / 20
        low, high = np.array(best) - step, np.array(best) + step
    return best


def held_out(points: Sequence[Point]) -> list[float]:
    """|transfer − fit| of every point, by a fit to the other seeds."""
    errors = []
    for seed in sorted({point[0] for point in points}):
        found = fitted([point for point in points if point[0] != seed])
        errors += [abs(y - curve(x, *found)) for s, x, y in points if s == seed]
    return errors


def half_width(errors: Sequence[float]) -> float:
    """The error that a share `LEVEL` of as many further points would stay below."""
    rank = math.ceil((len(errors) + 1) * LEVEL)
    return sorted(errors)[min(rank, len(errors)) - 1]


def coverage(points: Sequence[Point]) -> tuple[int, int]:
    """How many points of how many are in the interval that the other seeds alone give."""
    inside = 0
    for seed in sorted({point[0] for point in points}):
        others = [point for point in points if point[0] != seed]
        found, width = fitted(others), half_width(held_out(others))
        inside += sum(abs(y - curve(x, *found)) <= width for s, x, y in points if s == seed)
    return inside, len(points)


def other_widths(folder: Path, found: tuple[float, float], width: float) -> dict[str, list[int]]:
    """Of models of other sizes (section 4), how many are in the interval: {width: [in, of]}."""
    table: dict[str, list[int]] = {}
    for result in load(folder, "widths"):
        share = efficiency(
            *(average(result["models"][m], result["tasks"]) for m in ("ParamΔ", "direct"))
        )
        made = curve(result["measures"]["shift / delta"], *found)
        inside = table.setdefault(str(result["width"]), [0, 0])
        inside[0] += abs(share - made) <= width
        inside[1] += 1
    return table


def parameters(folder: Path) -> int:
    """Parameters of a model of the study: embedding and head are one."""
    text = (folder / "distance.json").read_text(encoding="utf-8")
    shape = json.loads(text)["programme"]["shape"]
    width, inner, layers = shape["width"], shape["inner"], shape["layers"]
    keys = width * shape["kv_heads"] // shape["heads"]
    layer = 2 * width * width + 2 * width * keys + 3 * width * inner + 2 * width
    return shape["vocabulary"] * width + layers * layer + width


def cases(points: Sequence[Point]) -> list[dict]:
    """How the runs came out, by shift / Δ: the least and the most transfer between two limits."""
    table = []
    for low, high in itertools.pairwise(LIMITS):
        found = [y for _, x, y in points if low <= x < high]
        table.append(
            {"from": low, "to": high, "runs": len(found), "least": min(found), "most": max(found)}
        )
    return table


def made(folder: Path = RESULTS) -> dict:
    """What `paramdelta analyze --predict` needs to know."""
    results = load(folder, "distance")
    points = [(r["seed"], r["measures"]["shift / delta"], r["efficiency"]) for r in results]
    found, width = fitted(points), half_width(held_out(points))
    inside, runs = coverage(points)
    size = parameters(folder)
    ranges = {
        "shift / Δ": [r["measures"]["shift / delta"] for r in results],
        "cosine of Δ and S": [r["measures"]["cosine"] for r in results],
        "Δ / base": [r["measures"]["delta norm"] / r["measures"]["base norm"] for r in results],
    }
    ranges["parameters"] = [size / 2, 2 * size]  # at 1/4 and 4 times it, the interval fails
    return {
        "source": "docs/study.md, section 3: docs/study/distance.json",
        "command": "python -m studies.transfer.fit",
        "middle": round(found[0], 4),
        "power": round(found[1], 4),
        "level": LEVEL,
        "half_width": round(width, 2),
        "inside": inside,
        "runs": runs,
        "seeds": len({point[0] for point in points}),
        "ranges": {name: [round(min(v), 4), round(max(v), 4)] for name, v in ranges.items()},
        "cases": cases(points),
        "other_widths": other_widths(folder, found, width),
    }


def main() -> None:
    """Write the fit into the package."""
    TARGET.write_text(json.dumps(made(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
