"""The shipped lineage's Δ at several ranks: energy and demo scores. `python -m studies.lowrank`.

Writes studies/lowrank/results.json and the tables of docs/lora.md.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from paramdelta import Delta, Recipe, extract_adapter, mix
from paramdelta.api import ExtractedAdapter, plan_extract
from paramdelta.arithmetic import sketch
from paramdelta.arithmetic.sketch import Aim, factorise, missed
from paramdelta.demo import tour
from paramdelta.jobs.lowrank import difference
from paramdelta.planning.linear import linear
from paramdelta.planning.plan import Plan
from studies.lowrank import page
from tests.opening import fetch

RESULTS = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parents[2] / "docs" / "lora.md"
RANKS = (4, 8, 16, 32, 128)  # the last is as much as any weight of the lineage has
ITERATIONS = (0, 1, 2, 3, 4)
ENERGIES = (0.5, 0.9, 0.99)
TARGETS = ("new-base", "base")


def scores(delta: Delta, work: Path) -> dict[str, Any]:
    """Mean percent of right answers of both targets with the Δ, on the tasks that direct can do."""
    found = {}
    for target in TARGETS:
        out = work / "mixed"
        mix(Recipe(str(tour.LINEAGE / target), (delta,)), out, overwrite=True)
        measured = tour.score(out).by_model
        trained = [task for task, right in measured["direct"].items() if right > 0]
        found[target] = sum(measured["ParamΔ"][task] for task in trained) / len(trained)
    return found


def shipped() -> dict[str, float]:
    """The same mean for the lineage's own models."""
    said = json.loads((tour.LINEAGE / "scores.json").read_text(encoding="utf-8"))
    trained = [task for task, right in said["direct"].items() if right > 0]
    return {name: sum(s[task] for task in trained) / len(trained) for name, s in said.items()}


def facts(result: ExtractedAdapter) -> dict[str, Any]:
    """What an adapter keeps."""
    made = result.made
    return {
        "bytes": made.stored,
        "kept_of_modules": made.kept_of_modules,
        "kept_of_all": made.kept_of_all,
        "ranks": [min(one.rank for one in made.kept), made.rank],
    }


def of_rank(plan: Plan, rank: int, embeddings: bool, work: Path) -> dict[str, Any]:
    """Energy in both dtypes, and scores as it is stored by default."""
    extract = partial(
        extract_adapter, plan, work / "adapter", rank=rank, embeddings=embeddings, overwrite=True
    )
    wide = extract(dtype="f32").made
    result = extract()
    record = {"rank": rank, "embeddings": embeddings, **facts(result)}
    record["kept_of_modules_f32"] = wide.kept_of_modules
    record["scores"] = scores(Delta(str(work / "adapter")), work)
    print(json.dumps(record), flush=True)
    return record


def of_energy(plan: Plan, energy: float, work: Path) -> dict[str, Any]:
    """What a share of the energy costs."""
    result = extract_adapter(plan, work / "adapter", energy=energy, overwrite=True)
    return {"energy": energy, **facts(result)}


def nearness(plan: Plan, iterations: int, rank: int) -> dict[str, float]:
    """The energy kept over the most that any factors of the rank can keep, least and in all."""
    sketch.ITERATIONS = iterations
    kept, best = [], []
    for module in linear(plan, False).modules:
        blocks = partial(difference, module.pair, module.shape[1], fetch, "the lineage")
        factors = factorise(blocks, module.shape, Aim(rank, None, rank), 0)
        assert factors is not None
        kept.append(factors.energy - missed(blocks, factors.up, factors.down))
        values = np.linalg.svd(np.concatenate([b for _, b in blocks()]), compute_uv=False)
        best.append(float((values[:rank] ** 2).sum()))
    shares = [k / b for k, b in zip(kept, best, strict=True)]
    return {
        "iterations": iterations,
        "rank": rank,
        "least": min(shares),
        "all": sum(kept) / sum(best),
    }


def main() -> None:
    """Measure all of it and write it down."""
    usual = sketch.ITERATIONS
    plan = plan_extract(str(tour.LINEAGE / "post"), str(tour.LINEAGE / "base"))
    near = [nearness(plan, count, rank) for rank in (4, 16, 32) for count in ITERATIONS]
    sketch.ITERATIONS = usual
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        exact = Delta(str(tour.LINEAGE / "post"), str(tour.LINEAGE / "base"))
        result = {
            "nearness": near,
            "energies": [of_energy(plan, energy, work) for energy in ENERGIES],
            "shipped": shipped(),
            "exact": scores(exact, work),
            "ranks": [
                of_rank(plan, rank, embeddings, work)
                for embeddings in (False, True)
                for rank in RANKS
            ],
            "versions": {name: version(name) for name in ("numpy", "torch", "transformers")},
        }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page.write(PAGE, result)
