"""From scores of items to statements: standard errors, transfer efficiency, γ and paired tests.

Pure functions on arrays. Nothing here knows a model, a task or the harness. Everything random is
seeded, so the same scores give the same intervals.

Intervals are 95 % bootstrap intervals of two kinds. Those over **items** ask what other questions
of the same tasks would give. Those over **tasks** ask what other tasks would give; item noise is
part of the spread between tasks, so only tasks are resampled (Davison & Hinkley 1997, 3.8).

* Items are resampled together for all models, because models answer the same questions.
* Where all scores of a task are 0 or 1, two items are added to those that are resampled, spread
  evenly over all combinations of right and wrong (Agresti & Min 2005), so a task in which every
  answer is right does not get an interval of no width.
* Percentiles are widened for small samples by Student's t (Hesterberg 2015, "expanded percentile").
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPLICATES = 2000
SEED = 20
LEAST_TASKS = 5  # with fewer tasks there is no interval over tasks
LEVEL = 0.95

Array = NDArray[np.float64]
Statistic = Callable[[Any], Any]  # means [..., tasks, models] -> [...]


@dataclass(frozen=True)
class Estimate:
    """A value, with 95 % intervals over items and over tasks where there is one.

    ``value`` is None where the quantity is undefined.
    """

    value: float | None
    items: tuple[float, float] | None = None
    tasks: tuple[float, float] | None = None


@dataclass(frozen=True)
class Mean:
    """The mean score of a model on a task: standard error, and number of items.

    ``error`` is None for a single item.
    """

    value: float
    error: float | None
    items: int


@dataclass(frozen=True)
class Line:
    """The least-squares line through the origin, y = γ · x over tasks, and its fit.

    ``r2`` is 1 − Σ(y − γ x)² / Σ(y − mean y)²: below 0 if a constant fits better; None if y is
    constant.
    """

    slope: Estimate
    r2: float | None


@dataclass(frozen=True)
class Difference:
    """Two models on the same items: first minus second.

    ``p``: of the hypothesis that there is no difference. ``interval``: 95 %, over items.
    ``only_first``, ``only_second``: items that only one of them has right; None for graded scores.
    """

    value: float
    interval: tuple[float, float]
    p: float
    test: str
    items: int
    only_first: int | None = None
    only_second: int | None = None


class Table:
    """Scores of items: tasks × models, where all models of a task have the same items in one order.

    A score is a number; 0 is wrong and 1 is right, and graded scores lie between or elsewhere.

    Raises:
        ValueError: a task has no items or no models, or models with different numbers of items, or
            a score that is not finite.
    """

    def __init__(self, scores: Mapping[str, Mapping[str, Sequence[float] | Array]]) -> None:
        self.scores: dict[str, dict[str, Array]] = {}
        for task, by_model in scores.items():
            arrays = {m: np.asarray(values, np.float64) for m, values in by_model.items()}
            sizes = {array.size for array in arrays.values()}
            if len(sizes) != 1 or 0 in sizes:
                raise ValueError(f"{task}: {sorted(sizes)} items")
            if not all(np.isfinite(array).all() for array in arrays.values()):
                raise ValueError(f"{task}: a score is not finite")
            self.scores[task] = arrays

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in their order."""
        return tuple(self.scores)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that any task has."""
        return tuple(dict.fromkeys(m for row in self.scores.values() for m in row))

    def having(self, *models: str) -> "Table":
        """Only the tasks that have scores of all these models."""
        return Table({t: row for t, row in self.scores.items() if all(m in row for m in models)})

    def only(self, task: str) -> "Table":
        """One task."""
        return Table({task: self.scores[task]})

    def mean(self, task: str, model: str) -> Mean | None:
        """The score of a model on a task, or None if it has none."""
        values = self.scores[task].get(model)
        if values is None:
            return None
        size = values.size
        error = float(values.std(ddof=1)) / math.sqrt(size) if size > 1 else None
        return Mean(float(values.mean()), error, size)

    def average(self, model: str, tasks: Sequence[str] | None = None) -> Mean | None:
        """The mean over tasks, each counting the same; the error is that over items."""
        cells = [self.mean(task, model) for task in tasks or self.tasks]
        found = [cell for cell in cells if cell is not None]
        if len(found) < len(cells) or not found:
            return None
        errors = [cell.error for cell in found]
        known = [error for error in errors if error is not None]
        error = math.hypot(*known) / len(found) if len(known) == len(errors) else None
        value = sum(cell.value for cell in found) / len(found)
        return Mean(value, error, sum(cell.items for cell in found))


# -- transfer --------------------------------------------------------------------------------------


def efficiency(table: Table, mixed: str, direct: str) -> Estimate:
    """Mean of mixed over mean of direct, each task counting the same: the paper's measure.

    With post in place of direct it is what is used where there is no direct. Undefined where direct
    scores 0.
    """
    return _estimated(table, (mixed, direct), _ratio)


def gain(table: Table, mixed: str, direct: str, new_base: str) -> Estimate:
    """(mixed − new base) / (direct − new base): the share of what training would have added.

    Undefined where direct is not better than the new base.
    """
    found = _estimated(table, (mixed, direct, new_base), _gained)
    if found.value is None:
        return found
    added = _estimated(table, (direct, new_base), _added)
    # A quotient whose denominator may be 0 has no bounded interval (Fieller 1954).
    if added.items is not None and added.items[0] <= 0:
        return Estimate(found.value)
    return found


def line(table: Table, mixed: str, direct: str) -> Line:
    """The paper's γ: mixed = γ · direct over tasks, through the origin."""
    chosen = table.having(mixed, direct)
    slope = _estimated(chosen, (mixed, direct), _slope)
    if slope.value is None:
        return Line(slope, None)
    means = _means(chosen, (mixed, direct))
    y, x = means[:, 0], means[:, 1]
    spread = float(((y - y.mean()) ** 2).sum())
    missed = float(((y - slope.value * x) ** 2).sum())
    return Line(slope, 1 - missed / spread if spread > 0 else None)


def _ratio(means: Array) -> Array:
    totals = means.sum(axis=-2)
    return _divided(totals[..., 0], totals[..., 1])


def _gained(means: Array) -> Array:
    totals = means.sum(axis=-2)
    below = totals[..., 1] - totals[..., 2]
    return _divided(totals[..., 0] - totals[..., 2], np.where(below > 0, below, 0))


def _added(means: Array) -> Array:
    totals = means.sum(axis=-2)
    return np.asarray(totals[..., 0] - totals[..., 1])


def _slope(means: Array) -> Array:
    y, x = means[..., 0], means[..., 1]
    return _divided((x * y).sum(axis=-1), (x * x).sum(axis=-1))


def _divided(above: Array, below: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below != 0, above / below, np.nan)


# -- paired tests ----------------------------------------------------------------------------------


def difference(table: Table, task: str, first: str, second: str) -> Difference:
    """Compare two models on one task, item by item.

    Right or wrong: McNemar's test with the mid-p value, which keeps its level and is less
    conservative than the exact one (Fagerland, Lydersen & Laake 2013). Graded scores: a bootstrap
    test of the studentized mean difference.
    """
    one, two = table.scores[task][first], table.scores[task][second]
    apart = one - two
    pair = Table({task: {first: one, second: two}})
    interval = _estimated(pair, (first, second), _added).items or (-math.inf, math.inf)
    value = float(apart.mean())
    if _is_binary(np.stack([one, two])):
        only_one, only_two = int((apart > 0).sum()), int((apart < 0).sum())
        p = mcnemar(only_one, only_two)
        return Difference(value, interval, p, "McNemar", apart.size, only_one, only_two)
    return Difference(value, interval, _bootstrap_p(apart), "bootstrap", apart.size)


def mcnemar(only_first: int, only_second: int) -> float:
    """The mid-p value of McNemar's test, two-sided, from the numbers of discordant items."""
    size, least = only_first + only_second, min(only_first, only_second)
    if size == 0 or only_first == only_second:
        return 1.0
    below = [_binomial(k, size) for k in range(least + 1)]
    return min(1.0, 2 * sum(below) - below[-1])


def adjusted(values: Sequence[float]) -> list[float]:
    """p-values of several tests so that all together keep their level (Holm 1979)."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    result, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        result[index] = highest
    return result


def _binomial(k: int, size: int) -> float:
    logarithm = math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1)
    return math.exp(logarithm - size * math.log(2))


def _bootstrap_p(apart: Array) -> float:
    size, spread = apart.size, float(apart.std(ddof=1)) if apart.size > 1 else 0.0
    if spread == 0:
        return 1.0 if size < 2 or not apart.any() else 1 / (REPLICATES + 1)
    seen = abs(float(apart.mean())) / spread
    values, counts = np.unique(apart, return_counts=True)
    centered, extreme = values - apart.mean(), 0
    for weights in _weights(counts / size, size, np.random.default_rng(SEED)):
        mean = weights @ centered / size
        variance = np.maximum(weights @ centered**2 / size - mean**2, 0) * size / (size - 1)
        extreme += int((np.abs(mean) >= seen * np.sqrt(variance)).sum())
    return (extreme + 1) / (REPLICATES + 1)


# -- bootstrap -------------------------------------------------------------------------------------


def _estimated(table: Table, models: Sequence[str], of: Statistic) -> Estimate:
    chosen = table.having(*models)
    if not chosen.tasks:
        return Estimate(None)
    means = _means(chosen, models)
    value = float(of(means))
    if not math.isfinite(value):
        return Estimate(None)
    over_items = of(_resampled_items(chosen, models))
    smallest = min(row[models[0]].size for row in chosen.scores.values())
    degrees = sum(row[models[0]].size - 1 for row in chosen.scores.values())
    count, tasks = len(chosen.tasks), None
    if count >= LEAST_TASKS:
        picks = np.random.default_rng(SEED).integers(0, count, (REPLICATES, count))
        tasks = _percentiles(of(means[picks]), count, count - 1)
    return Estimate(
        value, _percentiles(over_items, smallest, degrees) if degrees > 0 else None, tasks
    )


def _means(table: Table, models: Sequence[str]) -> Array:
    """Mean scores, [tasks, models]."""
    return np.array([[row[m].mean() for m in models] for row in table.scores.values()])


def _resampled_items(table: Table, models: Sequence[str]) -> Array:
    """Mean scores of resampled items, [replicates, tasks, models]."""
    random = np.random.default_rng(SEED)
    found = []
    for row in table.scores.values():
        items, shares = _population(np.stack([row[m] for m in models], axis=1))
        size = row[models[0]].size
        parts = [weights @ items / size for weights in _weights(shares, size, random)]
        found.append(np.concatenate(parts))
    return np.stack(found, axis=1)


def _population(items: Array) -> tuple[Array, Array]:
    """What is resampled, [rows, models], and the share of each row."""
    rows, counts = np.unique(items, axis=0, return_counts=True)
    shares = counts.astype(np.float64)
    if _is_binary(items):
        models = items.shape[1]
        every = np.array(list(np.ndindex(*(2,) * models)), np.float64)
        rows = np.concatenate([rows, every])
        shares = np.concatenate([shares, np.full(len(every), 2 / len(every))])
    return rows, shares / shares.sum()


def _weights(shares: Array, size: int, random: np.random.Generator) -> Iterator[Array]:
    """How often each row is drawn, in blocks of [replicates, rows] of at most some 16 MB."""
    block = max(1, min(REPLICATES, 2_000_000 // len(shares)))
    for start in range(0, REPLICATES, block):
        yield random.multinomial(size, shares, min(block, REPLICATES - start)).astype(np.float64)


def _percentiles(values: Array, size: int, degrees: int) -> tuple[float, float] | None:
    """The expanded percentile interval; None if a share of the replicates is undefined."""
    known = values[np.isfinite(values)]
    if known.size < 0.99 * values.size:
        return None
    t = _student((1 + LEVEL) / 2, degrees) * math.sqrt(size / max(1, size - 1))
    tail = NormalDist().cdf(-t)
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def _student(share: float, degrees: int) -> float:
    """A quantile of Student's t, by Hill's expansion (1970); exact enough from 3 degrees on."""
    z = NormalDist().inv_cdf(share)
    if degrees > 200:
        return z
    if degrees <= 2:
        x = 2 * share - 1
        if degrees == 1:
            return math.tan(math.pi * x / 2)
        return x * math.sqrt(2 / (1 - x * x))
    n = degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


def _is_binary(scores: Array) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())
