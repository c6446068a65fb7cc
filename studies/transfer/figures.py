"""From scores to figures: transfer efficiency, the paper's γ, intervals, rank correlation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

# 97.5 % points of Student's t for 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def average(scores: Mapping[str, float], tasks: Sequence[str]) -> float:
    """Mean score of the tasks, each counting the same."""
    return statistics.fmean(scores[task] for task in tasks)


def efficiency(mixed: float, direct: float) -> float:
    """A score in percent of direct's; not a number if direct scores nothing."""
    return 100 * mixed / direct if direct else math.nan


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half-width of the 95 % interval) over seeds, by Student's t.

    With one value the half-width is NaN; if any value is NaN, both are.
    """
    mean = statistics.fmean(values)
    if len(values) < 2 or math.isnan(mean):
        return mean, math.nan
    t = _T[len(values) - 2] if len(values) - 2 < len(_T) else 1.96
    return mean, t * statistics.stdev(values) / math.sqrt(len(values))


def gamma(direct: Sequence[float], mixed: Sequence[float]) -> tuple[float, float]:
    """(γ, R²): the least-squares line mixed = γ · direct through zero, and its fit.

    R² is 1 − Σ(mixed − γ direct)² / Σ(mixed − mean)²: below 0 if a constant fits better. Both
    are not numbers if direct scores nothing.
    """
    if not any(direct):
        return math.nan, math.nan
    slope = sum(x * y for x, y in zip(direct, mixed, strict=True)) / sum(x * x for x in direct)
    mean = statistics.fmean(mixed)
    missed = sum((y - slope * x) ** 2 for x, y in zip(direct, mixed, strict=True))
    spread = sum((y - mean) ** 2 for y in mixed)
    return slope, 1 - missed / spread if spread else math.nan


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation of two series, ties by their mean rank; not a number if one is constant."""
    if min(x) == max(x) or min(y) == max(y):
        return math.nan
    return statistics.correlation(_ranks(x), _ranks(y))


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]
