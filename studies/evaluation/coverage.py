"""Simulated tables of scores with known truth: how often intervals cover it, and tests reject.

`make study-evaluation` writes benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.polynomial.hermite_e import hermegauss

from benchmarks.machine import describe
from paramdelta.evaluation.statistics import (
    Estimate,
    Table,
    difference,
    efficiency,
    gain,
    line,
)

RESULTS = Path("benchmarks/results/evaluation.json")
SIZES = (100, 150, 164, 200, 250, 250, 400, 500, 541, 1000)  # items of each task
GRADED = 2  # of these, so many have scores in fifths
DIFFICULTY = 1.5  # standard deviation of items, in logits: what makes models agree
NODES, WEIGHTS = hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def probability(logits: np.ndarray) -> np.ndarray:
    """The mean score over items of models with these logits."""
    spread = logits[..., None] + DIFFICULTY * NODES
    return (WEIGHTS / (1 + np.exp(-spread))).sum(axis=-1)


def abilities(random: np.random.Generator, tasks: int) -> np.ndarray:
    """Logits of ParamΔ, direct and new base, [tasks, 3]."""
    direct = random.normal(1.0, 0.9, tasks)
    mixed = direct - np.abs(random.normal(0.25, 0.25, tasks))
    return np.stack([mixed, direct, direct - random.uniform(1.2, 2.5, tasks)], axis=1)


def answered(logits: np.ndarray, size: int, graded: bool, random: np.random.Generator) -> dict:
    """Scores of one task's items; items have difficulties that all models share."""
    hard = random.normal(0, DIFFICULTY, size)
    chance = 1 / (1 + np.exp(-(logits[:, None] + hard)))
    tries = 5 if graded else 1
    scores = random.binomial(tries, chance) / tries
    return dict(zip(("ParamΔ", "direct", "new-base"), scores, strict=True))


def table(random: np.random.Generator) -> tuple[Table, np.ndarray]:
    """A table, and the true means of its tasks, [tasks, 3]."""
    logits = abilities(random, len(SIZES))
    rows = {
        f"task {number}": answered(logits[number], size, number < GRADED, random)
        for number, size in enumerate(SIZES)
    }
    return Table(rows), probability(logits)


def population() -> tuple[float, float, float]:
    """Efficiency, gain and γ over all tasks that there could be."""
    random = np.random.default_rng(1)
    means = np.concatenate([probability(abilities(random, 10_000)) for _ in range(6)])
    mixed, direct, new = means.mean(axis=0)
    slope = (means[:, 0] * means[:, 1]).mean() / (means[:, 1] ** 2).mean()
    return mixed / direct, (mixed - new) / (direct - new), slope


def simulate(tables: int, seed: int = 7) -> dict[str, float]:
    """Shares of tables in which an interval covers, or a test rejects without a difference."""
    random = np.random.default_rng(seed)
    of_tasks = population()
    counts: dict[str, list[bool]] = {}

    def note(name: str, interval: tuple[float, float] | None, truth: float) -> None:
        covered = interval is not None and interval[0] <= truth <= interval[1]
        counts.setdefault(name, []).append(covered)

    names = ("ParamΔ", "direct", "new-base")
    for number in range(tables):
        made, means = table(random)
        mixed, direct, new = means.mean(axis=0)
        slope = (means[:, 0] * means[:, 1]).sum() / (means[:, 1] ** 2).sum()
        truths = (mixed / direct, (mixed - new) / (direct - new), slope)
        found: tuple[Estimate, ...] = (
            efficiency(made, *names[:2]),
            gain(made, *names),
            line(made, *names[:2]).slope,
        )
        for what, one, here, wide in zip(
            ("efficiency", "gain", "slope"), found, truths, of_tasks, strict=True
        ):
            note(f"{what}, over items", one.items, here)
            note(f"{what}, over tasks", one.tasks, wide)
        for chosen in ((number + step) % len(SIZES) for step in (0, 3, 7)):
            kind = "graded" if chosen < GRADED else "right or wrong"
            one = efficiency(made.only(f"task {chosen}"), *names[:2])
            note(f"efficiency of a task, {kind}", one.items, means[chosen, 0] / means[chosen, 1])
            gap = difference(made, f"task {chosen}", *names[:2])
            note(f"difference, {kind}", gap.interval, means[chosen, 0] - means[chosen, 1])
        same = np.repeat(abilities(random, 1)[:, 1:2], 3, axis=1)[0]
        for graded, kind in ((False, "McNemar"), (True, "bootstrap")):
            size = SIZES[number % len(SIZES)]
            pair = Table({"task": answered(same, size, graded, random)})
            p = difference(pair, "task", *names[:2]).p
            counts.setdefault(f"rejected at 5 % without a difference, {kind}", []).append(p < 0.05)
    return {name: round(float(np.mean(found)), 4) for name, found in counts.items()}


def coverage_table(record: dict) -> str:
    """The shares as they are in docs/evaluation.md."""
    rows = ["| | share |", "|---|---:|"]
    for name, share in record["shares"].items():
        test = name.startswith("rejected")
        what = f"test {name}" if test else f"95 % interval covers the truth: {name}"
        rows.append(f"| {what} | {100 * share:.1f} % |")
    return "\n".join(rows)


def main() -> None:
    """Simulate and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m studies.evaluation", description=__doc__)
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    record = {
        "command": f"python -m studies.evaluation --tables {options.tables}",
        "machine": describe(Path()),
        "tables": options.tables,
        "items": SIZES,
        "shares": simulate(options.tables),
    }
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    json.dump(record["shares"], sys.stdout, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
