"""From the result files to the registered measures, with bootstrap intervals over seeds and items.

A score is MRR@10 × 100. preregistration.md defines every measure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SETS = ("code", "medical", "humaneval", "mbpp")
DIRECTIONS = {"code": "medical", "medical": "code"}  # skill -> domain
MODELS = ("code", "medical", "medical+code", "code+medical", "mix", "average")
ROLES = ("base", "post", "new base", "average", "ParamΔ", "direct")
CUTOFF = 10
Draws = np.ndarray  # (1 + resamples,): the value on all data first, then on every resample


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % percentile interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"

    @property
    def verdict(self) -> str:
        """Whether the interval is above zero, below, or neither."""
        return "above 0" if self.low > 0 else "below 0" if self.high < 0 else "undecided"


def estimate(draws: Draws) -> Estimate:
    """The value on all data and the percentiles of the resamples."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return Estimate(float(draws[0]), float(low), float(high))


def role_names(skill: str) -> dict[str, str]:
    """{role: name of the result file's model} in the direction that moves `skill`."""
    domain = DIRECTIONS[skill]
    direct = f"{domain}+{skill}"
    names = {"post": skill, "new base": domain, "ParamΔ": "mix", "direct": direct}
    return {"base": "base", "average": "average", **names}


@dataclass(frozen=True)
class Arm:
    """The completed seeds of an arm, and their records: `records[model]` has one per seed."""

    name: str
    seeds: tuple[int, ...]
    records: dict[str, list[dict]]
    groups: dict[str, list[int]]


def read_arm(folder: Path, name: str, order: Iterable[tuple[str, int]]) -> Arm:
    """The seeds of an arm of which every model was scored."""
    seeds = tuple(
        seed
        for arm, seed in order
        if arm == name and all((folder / f"{arm}-{seed}-{m}.json").exists() for m in MODELS)
    )
    records = {m: [_read(folder / f"{name}-{seed}-{m}.json") for seed in seeds] for m in MODELS}
    if seeds:
        records["base"] = [_read(folder / "base.json")] * len(seeds)
    return Arm(name, seeds, records, _read(folder / "items.json")["groups"])


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def reciprocal(ranks: np.ndarray) -> np.ndarray:
    """100 / rank, and 0 beyond the cutoff."""
    return np.where(ranks <= CUTOFF, 100 / ranks, 0.0)


def first(ranks: np.ndarray) -> np.ndarray:
    """100 where the rank is 1, else 0."""
    return np.where(ranks == 1, 100.0, 0.0)


class Resampling:
    """Weights of seeds and clusters, the same for every model. Row 0 counts everything once."""

    def __init__(self, arm: Arm, resamples: int) -> None:
        draw = np.random.default_rng(0)

        def weights(count: int) -> np.ndarray:
            drawn = draw.multinomial(count, np.full(count, 1 / count), size=resamples)
            return np.vstack([np.ones((1, count)), drawn])

        self.arm = arm
        self.seeds = weights(len(arm.seeds))
        self.clusters = {name: weights(max(arm.groups[name]) + 1) for name in SETS}

    def score(self, model: str, name: str, ranks: str = "ranks") -> Draws:
        """A model's score on a set; with ranks "near_ranks", its accuracy on hard negatives."""
        groups = np.array(self.arm.groups[name])
        count = np.bincount(groups).astype(float)
        measure = reciprocal if ranks == "ranks" else first
        sums = np.array(
            [
                np.bincount(groups, weights=measure(np.array(record["sets"][name][ranks])))
                for record in self.arm.records[model]
            ]
        )
        chosen = self.clusters[name]
        total = np.einsum("rs,sc,rc->r", self.seeds, sums, chosen, optimize=True)
        return total / (self.seeds.sum(1) * (chosen @ count))


@dataclass(frozen=True)
class Direction:
    """Every registered measure of one direction of one arm, before intervals are taken."""

    skill: str
    scores: dict[str, dict[str, Draws]]  # role -> set, or "both" -> draws
    near: dict[str, dict[str, Draws]]
    seeds: int

    @property
    def domain(self) -> str:
        """The set that the new base was continued for."""
        return DIRECTIONS[self.skill]

    def difference(self, role: str, other: str, name: str) -> Draws:
        """Score of one role minus that of another."""
        return self.scores[role][name] - self.scores[other][name]

    def best_without(self) -> Draws:
        """The better of the two models that a user has without mixing, on both."""
        return np.maximum(self.scores["post"]["both"], self.scores["new base"]["both"])

    def gain(self) -> Draws:
        """Primary 1: both(ParamΔ) − max(both(post), both(new base)), in points."""
        return self.scores["ParamΔ"]["both"] - self.best_without()

    def room(self) -> Draws:
        """The denominator of primary 2: the same for direct."""
        return self.scores["direct"]["both"] - self.best_without()

    def share_of_gain(self) -> Estimate | None:
        """Primary 2 in percent; None if the denominator is not above 0."""
        return _ratio(self.gain(), self.room())

    def gap_closed(self, name: str) -> Estimate | None:
        """(ParamΔ − new base) / (direct − new base) in percent, under the same condition."""
        return _ratio(
            self.difference("ParamΔ", "new base", name), self.difference("direct", "new base", name)
        )

    def share_of_direct(self, name: str, role: str = "ParamΔ", capped: bool = False) -> Estimate:
        """The paper's ratio in percent; capped, it counts at most 100 in every resample."""
        ratio = 100 * self.scores[role][name] / self.scores["direct"][name]
        return estimate(np.minimum(ratio, 100) if capped else ratio)


def _ratio(top: Draws, bottom: Draws) -> Estimate | None:
    if estimate(bottom).low <= 0:
        return None
    return estimate(100 * top / bottom)


def directions(arm: Arm, resamples: int) -> dict[str, Direction]:
    """Both directions of an arm with at least one completed seed."""
    sampled = Resampling(arm, resamples)
    plain = {m: {s: sampled.score(m, s) for s in SETS} for m in ("base", *MODELS)}
    near = {m: {s: sampled.score(m, s, "near_ranks") for s in SETS} for m in ("base", *MODELS)}
    for scores in plain.values():
        scores["both"] = (scores["code"] + scores["medical"]) / 2
    return {
        skill: Direction(
            skill,
            {role: plain[name] for role, name in role_names(skill).items()},
            {role: near[name] for role, name in role_names(skill).items()},
            len(arm.seeds),
        )
        for skill in DIRECTIONS
    }
