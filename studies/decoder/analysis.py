"""The registered measures, from the result files: `python -m studies.decoder.analysis`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from studies.decoder.settings import read_settings
from studies.encoders.analysis import Draws, Estimate, estimate

MODELS = ("post", "new-base", "mix", "average", "direct")


def read_models(
    folder: Path, seeds: Iterable[int]
) -> tuple[tuple[int, ...], dict[str, list[dict]]]:
    """(completed seeds, {model: one record per seed}); the base stands once for every seed."""
    done = tuple(s for s in seeds if all((folder / f"{s}-{m}.json").exists() for m in MODELS))
    records = {m: [_read(folder / f"{s}-{m}.json") for s in done] for m in MODELS}
    if done:
        records["base"] = [_read(folder / "base.json")] * len(done)
    return done, records


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


class Resampling:
    """Weights of seeds and items, the same for every model. Row 0 counts everything once."""

    def __init__(self, records: dict[str, list[dict]], resamples: int) -> None:
        draw = np.random.default_rng(0)

        def weights(count: int) -> np.ndarray:
            drawn = draw.multinomial(count, np.full(count, 1 / count), size=resamples)
            return np.vstack([np.ones((1, count)), drawn])

        self.records = records
        one = records["post"][0]
        self.seeds = weights(len(records["post"]))
        self.items = {name: weights(len(one["losses"][name])) for name in ("skill", "domain")}
        self.items |= {name: weights(len(one[name])) for name in ("form", "right")}

    def loss(self, model: str, name: str) -> Draws:
        """Nats per token on "skill" or "domain"."""
        pairs = np.array([r["losses"][name] for r in self.records[model]], dtype=float)
        sums, counts = (
            np.einsum("rs,si,ri->r", self.seeds, pairs[..., i], self.items[name], optimize=True)
            for i in (0, 1)
        )
        return sums / counts

    def share(self, model: str, name: str) -> Draws:
        """Percent of the greedy answers with the form, or with the right number."""
        flags = np.array([r[name] for r in self.records[model]], dtype=float)
        items = self.items[name]
        total = np.einsum("rs,si,ri->r", self.seeds, flags, items, optimize=True)
        return 100 * total / (self.seeds.sum(1) * items.sum(1))


def measures(records: dict[str, list[dict]], resamples: int) -> dict[str, Estimate | None]:
    """Every registered measure; None where a denominator is not clearly above 0."""
    sampled = Resampling(records, resamples)
    skill, domain = (
        {m: sampled.loss(m, name) for m in ("base", *MODELS)} for name in ("skill", "domain")
    )
    both = {m: skill[m] + domain[m] for m in skill}
    best = np.minimum(both["post"], both["new-base"])
    form = {m: sampled.share(m, "form") for m in skill}
    right = {m: sampled.share(m, "right") for m in skill}
    return {
        **{f"skill loss, {m}": estimate(draws) for m, draws in skill.items()},
        **{f"domain loss, {m}": estimate(draws) for m, draws in domain.items()},
        **{f"form, {m}, %": estimate(draws) for m, draws in form.items()},
        **{f"right, {m}, %": estimate(draws) for m, draws in right.items()},
        "gain, nats": estimate(best - both["mix"]),
        "direct's gain, nats": estimate(best - both["direct"]),
        "share of the gain, %": _ratio(best - both["mix"], best - both["direct"]),
        "gap closed on the skill loss, %": _ratio(
            skill["new-base"] - skill["mix"], skill["new-base"] - skill["direct"]
        ),
        "gap closed on the form, %": _ratio(
            form["mix"] - form["new-base"], form["direct"] - form["new-base"]
        ),
        "ParamΔ − post, skill loss": estimate(skill["mix"] - skill["post"]),
        "ParamΔ − post, form": estimate(form["mix"] - form["post"]),
        "ParamΔ − post, right": estimate(right["mix"] - right["post"]),
        "ParamΔ − new base, domain loss": estimate(domain["mix"] - domain["new-base"]),
        "ParamΔ − direct, both": estimate(both["mix"] - both["direct"]),
        "ParamΔ − average, both": estimate(both["mix"] - both["average"]),
    }


def _ratio(top: Draws, bottom: Draws) -> Estimate | None:
    return estimate(100 * top / bottom) if estimate(bottom).low > 0 else None


def main() -> None:
    """Print the registered measures."""
    parser = argparse.ArgumentParser(prog="python -m studies.decoder.analysis", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("docs/study-decoder"))
    options = parser.parse_args()
    settings = read_settings()
    seeds, records = read_models(options.folder, settings.seeds)
    if not seeds:
        raise SystemExit(f"{options.folder} has no completed seed; run python -m studies.decoder.")
    print(f"{len(seeds)} of {len(settings.seeds)} registered seeds")
    for name, found in measures(records, settings.resamples).items():
        text = "–" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
        print(f"{name}: {text}")


if __name__ == "__main__":
    main()
