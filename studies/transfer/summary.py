"""From the study's JSON to the figures that the page and the plots show."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

from studies.transfer.figures import average, efficiency, gamma, interval, spearman

MODELS = ("base", "post", "post 2", "new base", "ParamΔ", "direct")
PREDICTORS = ("shift / delta", "shift / base", "cosine", "barrier", "shift norm", "rate × steps")
KEPT = 95.0  # per cent: transfer that counts as whole


def load(folder: Path, part: str) -> list[dict]:
    """The results of a part of the study; none if it was not run."""
    path = folder / f"{part}.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []


def scenario_names(results: Sequence[dict]) -> list[str]:
    """The scenarios in the order in which they were run."""
    return list(dict.fromkeys(result["scenario"] for result in results))


def of_scenario(results: Sequence[dict], name: str) -> list[dict]:
    """The results of one scenario, a seed each."""
    return [result for result in results if result["scenario"] == name]


def model_average(results: Sequence[dict], model: str) -> tuple[float, float] | None:
    """(mean, half-width) over seeds of a model's mean score; None if there is no such model."""
    if model not in results[0]["models"]:
        return None
    return interval([average(r["models"][model], r["tasks"]) for r in results])


def shares_of_direct(results: Sequence[dict], model: str, capped: bool = False) -> list[float]:
    """A model's mean score in percent of direct's: one value a seed.

    With `capped`, no task counts for more than direct's score on it.
    """
    shares = []
    for r in results:
        direct, scores = r["models"]["direct"], r["models"][model]
        got = {t: min(scores[t], direct[t]) if capped else scores[t] for t in r["tasks"]}
        shares.append(efficiency(average(got, r["tasks"]), average(direct, r["tasks"])))
    return shares


def differences(
    results: Sequence[dict], model: str, other: str, tasks: Sequence[str]
) -> list[float]:
    """Mean score of `model` minus that of `other` on the tasks, in points: one value a seed."""
    return [
        average(r["models"][model], tasks) - average(r["models"][other], tasks) for r in results
    ]


def gammas(results: Sequence[dict]) -> list[float]:
    """The slope γ of each seed by itself."""
    return [gamma(*pairs([r]))[0] for r in results]


def task_figures(results: Sequence[dict], task: str) -> dict[str, float]:
    """Mean score of every model on a task over the seeds, and the efficiency of these means."""
    means = {
        model: sum(r["models"][model][task] for r in results) / len(results)
        for model in MODELS
        if model in results[0]["models"]
    }
    return {**means, "efficiency": efficiency(means["ParamΔ"], means["direct"])}


def pairs(results: Sequence[dict]) -> tuple[list[float], list[float]]:
    """Scores of (direct, ParamΔ): one pair a task and seed."""
    scored = [
        (r["models"]["direct"][t], r["models"]["ParamΔ"][t]) for r in results for t in r["tasks"]
    ]
    return [x for x, _ in scored], [y for _, y in scored]


def gamma_of(results: Sequence[dict]) -> tuple[float, float]:
    """(γ, R²) over all tasks and seeds."""
    return gamma(*pairs(results))


def alpha_curve(results: Sequence[dict], key: str = "alpha") -> dict[str, tuple[float, float]]:
    """{α: (mean efficiency, half-width)} over seeds; with key "weights", of pairs of weights."""
    return {
        alpha: interval(
            [
                efficiency(
                    average(r[key][alpha], r["tasks"]), average(r["models"]["direct"], r["tasks"])
                )
                for r in results
            ]
        )
        for alpha in results[0][key]
    }


def score_table(results: Sequence[dict], key: str) -> dict[str, tuple[float, float]]:
    """{case: (mean score, half-width)} of the parts left out, or of the controls."""
    return {
        case: interval([average(r[key][case], r["tasks"]) for r in results])
        for case in results[0][key]
    }


def predictor(point: dict, name: str) -> float:
    """One predictor of a point of the distance study."""
    if name == "rate × steps":
        return point["rate"] * point["steps"]
    return point["measures"][name]


def predictions(points: Sequence[dict]) -> dict[str, dict[str, float]]:
    """How well each predictor orders the transfer efficiencies, and where it breaks.

    "rank" is Spearman's correlation. "whole below" is the largest value up to which every
    point keeps at least 95 % of direct, "broken above" the smallest value at which any point
    keeps less than half. A predictor that is the same everywhere foretells nothing.
    """
    y = [point["efficiency"] for point in points]
    table = {}
    for name in PREDICTORS:
        x = [predictor(point, name) for point in points]
        ordered = sorted(zip(x, y, strict=True))
        rank, whole, broken = spearman(x, y), math.nan, math.nan
        if not math.isnan(rank):
            kept = itertools.takewhile(lambda pair: pair[1] >= KEPT, ordered)
            whole = max((value for value, _ in kept), default=math.nan)
            broken = next((value for value, got in ordered if got < 50), math.nan)
        table[name] = {"rank": rank, "whole below": whole, "broken above": broken}
    return table
