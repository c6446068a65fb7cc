"""Writes docs/study.md from template.md and the study's JSON: `python -m studies.transfer.page`.

The template holds the words. `{{name}}` stands for a number and `{{table: name}}` for a table;
both are computed here from the JSON files. A test renders the page again and compares it, and
another one finds numbers that were typed into the template.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from studies import pages
from studies.pages import table
from studies.transfer import summary
from studies.transfer.figures import average, efficiency, interval, spearman

TEMPLATE = Path(__file__).parent / "template.md"
FOLDER = Path("docs/study")
SCENARIOS = {
    "general": "new general base",
    "task": "task-specific Δ",
    "domain": "continued base with new knowledge",
    "several": "several Δ",
}
FACTS = ("old facts", "new facts")


def with_interval(value: tuple[float, float] | None) -> str:
    """ "97.1 ± 1.2", or "97.1" if there was one seed, or a dash if there is no value."""
    if value is None:
        return "–"
    mean, half = value
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2g}"


def _plain(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _scenario(folder: Path, short: str, part: str = "scenarios") -> list[dict]:
    return summary.of_scenario(summary.load(folder, part), SCENARIOS[short])


def _of_seeds(values: Sequence[float]) -> str:
    return with_interval(interval(values))


def headline(folder: Path, part: str = "scenarios") -> str:
    """Every scenario: the old post used as it is, beside ParamΔ, in percent of direct."""
    results = summary.load(folder, part)
    rows = []
    for name in summary.scenario_names(results):
        chosen = summary.of_scenario(results, name)
        post = summary.shares_of_direct(chosen, "post")
        mixed = summary.shares_of_direct(chosen, "ParamΔ")
        rows.append(
            [
                name,
                _plain(interval(summary.shares_of_direct(chosen, "new base"))[0]),
                _of_seeds(post),
                _of_seeds(mixed),
                _of_seeds(summary.shares_of_direct(chosen, "ParamΔ", capped=True)),
                "**" + _of_seeds([m - p for m, p in zip(mixed, post, strict=True)]) + "**",
            ]
        )
    head = ["new base", "post, unchanged", "ParamΔ", "ParamΔ, capped", "ParamΔ − post"]
    return table(["scenario", *head], rows)


def scores(folder: Path) -> str:
    """Every scenario: mean scores of all models."""
    results = summary.load(folder, "scenarios")
    rows = []
    for name in summary.scenario_names(results):
        chosen = summary.of_scenario(results, name)
        averages = (summary.model_average(chosen, model) for model in summary.MODELS)
        rows.append([name, *(with_interval(value) for value in averages)])
    return table(["scenario", *summary.MODELS], rows)


def gain(folder: Path) -> str:
    """Where ParamΔ differs from post, in points, paired by seed."""
    results = summary.load(folder, "scenarios")
    rows = []
    for name in summary.scenario_names(results):
        chosen = summary.of_scenario(results, name)
        cells = []
        for wanted in (("new facts",), ("old facts",), None):
            tasks = [t for t in chosen[0]["tasks"] if (t in wanted if wanted else t not in FACTS)]
            values = summary.differences(chosen, "ParamΔ", "post", tasks) if tasks else []
            cells.append(_of_seeds(values) if values else "–")
        rows.append([name, *cells])
    return table(["scenario", "new facts", "old facts", "all other tasks"], rows)


def slopes(folder: Path) -> str:
    """γ of every scenario, with an interval over seeds, and the fit of the common line."""
    results = summary.load(folder, "scenarios")
    rows = []
    for name in summary.scenario_names(results):
        chosen = summary.of_scenario(results, name)
        mean, half = interval(summary.gammas(chosen))
        slope, fit = summary.gamma_of(chosen)
        rows.append([name, f"{slope:.3f}", f"{mean:.3f} ± {half:.3f}", f"{fit:.2f}"])
    return table(["scenario", "γ, all seeds", "γ, mean of the seeds", "R², all seeds"], rows)


def history(folder: Path) -> str:
    """Seed 1 and the shipped lineage before and after the settings were changed."""
    record = json.loads((folder / "before.json").read_text(encoding="utf-8"))
    old, new = record["results"], summary.load(folder, "scenarios")
    rows = []
    for name in summary.scenario_names(new):
        cells = []
        for results in (old, new):
            first = [r for r in summary.of_scenario(results, name) if r["seed"] == 1]
            cells.append(
                [
                    _plain(first[0]["measures"]["shift / delta"], 2),
                    _plain(summary.shares_of_direct(first, "post")[0]),
                    _plain(summary.shares_of_direct(first, "ParamΔ")[0]),
                ]
            )
        rows.append([name, *(cell for pair in zip(*cells, strict=True) for cell in pair)])
    shipped = [
        [
            "–",
            _plain(_share(scores_of, "post", trained(scores_of))),
            _plain(_share(scores_of, "ParamΔ", trained(scores_of))),
        ]
        for scores_of in (record["shipped"], shipped_scores(folder))
    ]
    rows.append(["shipped lineage", *(c for pair in zip(*shipped, strict=True) for c in pair)])
    head = [f"{what}, {when}" for what in ("shift / Δ", "post", "ParamΔ") for when in _WHEN]
    return table(["scenario", *head], rows)


_WHEN = ("before", "after")


def settings(folder: Path) -> str:
    """The courses of training before and after the settings were changed."""
    record = json.loads((folder / "before.json").read_text(encoding="utf-8"))
    now = json.loads((folder / "scenarios.json").read_text(encoding="utf-8"))
    rows = []
    for course in ("pretraining", "chat", "continuation"):
        for key in ("steps", "rate", "rows", "final"):
            old, new = (r["programme"][course][key] for r in (record, now))
            if old != new:
                name = {"final": "rate at the end, share of the peak"}.get(key, key)
                rows.append([course, name, f"{old:g}", f"{new:g}"])
    return table(["training", "setting", *_WHEN], rows)


def shipped_scores(folder: Path) -> dict[str, dict[str, float]]:
    """{model: {task: percent right}} of the shipped lineage, ParamΔ at α = 1 among the models."""
    record = json.loads((folder / "shipped.json").read_text(encoding="utf-8"))
    every = {**record["models"], "ParamΔ": record["alpha"]["1"]}
    return {
        model: {task: 100 * bits.count("1") / len(bits) for task, bits in tasks.items()}
        for model, tasks in every.items()
    }


def trained(scores_of: dict[str, dict[str, float]]) -> list[str]:
    """The tasks in which direct gets anything right."""
    return [task for task, value in scores_of["direct"].items() if value > 0]


def _share(
    scores_of: dict[str, dict[str, float]], model: str, tasks: Sequence[str], capped: bool = False
) -> float:
    direct = scores_of["direct"]
    got = {t: min(scores_of[model][t], direct[t]) if capped else scores_of[model][t] for t in tasks}
    return efficiency(average(got, tasks), average(direct, tasks))


def shipped(folder: Path) -> str:
    """The shipped lineage: every model, task by task."""
    found = shipped_scores(folder)
    models = ("new base", "post", "ParamΔ", "direct")
    rows = [[t, *(_plain(found[m][t], 0) for m in models)] for t in trained(found)]
    return table(["task", *models], rows)


def shipped_alphas(folder: Path) -> str:
    """The shipped lineage: ParamΔ in percent of direct at every α."""
    record = json.loads((folder / "shipped.json").read_text(encoding="utf-8"))
    found = shipped_scores(folder)
    rows = []
    for alpha, tasks in record["alpha"].items():
        at = {t: 100 * bits.count("1") / len(bits) for t, bits in tasks.items()}
        with_this = {**found, "ParamΔ": at}
        rows.append([alpha, _plain(_share(with_this, "ParamΔ", trained(found)))])
    return table(["α", "ParamΔ, % of direct"], rows)


def second(folder: Path) -> str:
    """The shipped lineage: the second Δ moved alone, against the post it comes from."""
    record = json.loads((folder / "shipped.json").read_text(encoding="utf-8"))
    rows = []
    for task in ("sort", "join", "list", "json"):
        cells = (record["models"]["post 2"][task], record["second Δ alone"][task])
        rows.append([task, *(_plain(100 * b.count("1") / len(b), 0) for b in cells)])
    return table(["task", "second post", "new base + its Δ"], rows)


def overlaps(folder: Path) -> str:
    """How many test questions occur word for word in training, in percent over all seeds."""
    results = summary.load(folder, "overlap")
    tasks = [t for t in results[0]["chat"] if any(r[w][t] for r in results for w in _WHERE)]
    rows = [
        [task, *(_plain(sum(r[where][task] for r in results) / len(results)) for where in _WHERE)]
        for task in tasks
    ]
    return table(["task", "in the chat training", "in pretraining"], rows)


_WHERE = ("chat", "pretraining")


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
    return table(["scenario", "task", *summary.MODELS, "ParamΔ, % of direct"], rows)


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
        ["weights of the two Δ", "ParamΔ, % of direct"],
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
    head = ["rate", "steps", "shift / Δ", "cosine", "barrier", "ParamΔ", "direct", "% of direct"]
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
    """Scores and shares of direct at every width."""
    results = summary.load(folder, "widths")
    rows = []
    for width in sorted({r["width"] for r in results}):
        chosen = [r for r in results if r["width"] == width]
        averages = (summary.model_average(chosen, m) for m in ("post", "ParamΔ", "direct"))
        rows.append(
            [
                str(width),
                _plain(interval([r["measures"]["shift / delta"] for r in chosen])[0], 2),
                *(with_interval(value) for value in averages),
                _of_seeds(summary.differences(chosen, "ParamΔ", "post", chosen[0]["tasks"])),
                *(
                    _of_seeds(summary.shares_of_direct(chosen, "ParamΔ", capped=capped))
                    for capped in (False, True)
                ),
            ]
        )
    models = ["post", "ParamΔ", "direct", "ParamΔ − post"]
    return table(["width", "shift / Δ", *models, "ParamΔ, % of direct", "capped"], rows)


def circumstances(folder: Path) -> str:
    """How each part was run."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "programme" not in record or "command" not in record:
            continue  # not a run of this study
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


def again(folder: Path) -> str:
    """The shipped lineage, and the same trained again elsewhere."""
    other = json.loads((folder / "again.json").read_text(encoding="utf-8"))["scores"]
    found = shipped_scores(folder)
    tasks = trained(found)
    rows = [
        [name, *(_plain(_share(of, model, tasks)) for model in ("post", "ParamΔ"))]
        for name, of in (("shipped", found), ("trained again", other))
    ]
    return table(["lineage", "post, % of direct", "ParamΔ, % of direct"], rows)


TABLES: dict[str, Callable[[Path], str]] = {
    "headline": headline,
    "final": partial(headline, part="final"),
    "scores": scores,
    "gain": gain,
    "slopes": slopes,
    "history": history,
    "settings": settings,
    "by-task": by_task,
    "alphas": alphas,
    "weights": weights,
    "continued": continued,
    "predictors": predictors,
    "parts": partial(cases, part="parts", key="without"),
    "controls": partial(cases, part="controls", key="controls"),
    "widths": widths,
    "shipped": shipped,
    "shipped-alphas": shipped_alphas,
    "second": second,
    "overlaps": overlaps,
    "again": again,
    "circumstances": circumstances,
}


def _mean_share(
    folder: Path, short: str, model: str, part: str = "scenarios", capped: bool = False
) -> str:
    values = summary.shares_of_direct(_scenario(folder, short, part), model, capped)
    return _plain(interval(values)[0])


def _task_mean(folder: Path, short: str, task: str, model: str) -> str:
    return _plain(summary.task_figures(_scenario(folder, short), task)[model], 0)


def _cosine(folder: Path, name: str) -> str:
    record = json.loads((folder / "shipped.json").read_text(encoding="utf-8"))
    return _plain(record["cosines"][name], 2)


def _best_alpha(folder: Path, short: str) -> str:
    curve = summary.alpha_curve(_scenario(folder, short))
    return max(curve, key=lambda alpha: curve[alpha][0]).removesuffix(".0")


def _parameters(folder: Path, part: str) -> str:
    shape = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))["programme"]["shape"]
    width, inner = shape["width"], shape["inner"]
    layer = 4 * width * width + 3 * width * inner + 2 * width
    return f"{(shape['vocabulary'] * width + shape['layers'] * layer + width) / 1e6:.1f}"


def _shape(folder: Path, key: str) -> str:
    record = json.loads((folder / "scenarios.json").read_text(encoding="utf-8"))
    return str(record["programme"]["shape"][key])


def _delta_spread(folder: Path) -> str:
    """How much the norm of Δ varies over the seeds, in percent of its mean."""
    norms = sorted({p["measures"]["delta norm"] for p in summary.load(folder, "distance")})
    return _plain(100 * (norms[-1] - norms[0]) / (sum(norms) / len(norms)), 0)


def _rank(folder: Path, name: str) -> str:
    points = summary.load(folder, "distance")
    x = [summary.predictor(p, name) for p in points]
    return _plain(spearman(x, [p["efficiency"] for p in points]), 2)


def _kept_range(folder: Path, pick: Callable[[Sequence[float]], float]) -> str:
    """Largest or smallest mean efficiency of the distance study's rows."""
    points = summary.load(folder, "distance")
    places = sorted({(p["rate"], p["steps"]) for p in points})
    means = [
        average(
            {str(i): p["efficiency"] for i, p in enumerate(chosen)},
            [str(i) for i in range(len(chosen))],
        )
        for place in places
        if (chosen := [p for p in points if (p["rate"], p["steps"]) == place])
    ]
    return _plain(pick(means), 0)


def _widest(folder: Path) -> list[dict]:
    results = summary.load(folder, "widths")
    return [r for r in results if r["width"] == max(r["width"] for r in results)]


def _apart(folder: Path) -> str:
    """The largest difference of a task's score between the two trainings of the shipped lineage."""
    other = json.loads((folder / "again.json").read_text(encoding="utf-8"))["scores"]
    found = shipped_scores(folder)
    names = {"second-post": "post 2", "new-base": "new base"}
    return _plain(
        max(
            abs(value - found[names.get(model, model)][task])
            for model, tasks in other.items()
            for task, value in tasks.items()
        ),
        0,
    )


VALUES: dict[str, Callable[[Path], str]] = {
    **{
        f"{model} in {short}": partial(_mean_share, short=short, model=model)
        for short in SCENARIOS
        for model in ("post", "ParamΔ")
    },
    **{
        f"capped in {short}": partial(_mean_share, short=short, model="ParamΔ", capped=True)
        for short in SCENARIOS
    },
    **{
        f"{task} of {model} in {short}": partial(_task_mean, short=short, task=task, model=model)
        for short in ("general", "domain")
        for task in FACTS
        for model in ("post", "ParamΔ", "direct")
    },
    "shipped post": lambda folder: _shipped_share(folder, "post"),
    "shipped ParamΔ": lambda folder: _shipped_share(folder, "ParamΔ"),
    "shipped capped": lambda folder: _shipped_share(folder, "ParamΔ", capped=True),
    "shipped interval": lambda folder: _shipped_interval(folder),
    "cosine of the Δ": partial(_cosine, name="Δ, second Δ"),
    "cosine in the embedding": partial(_cosine, name="Δ, second Δ in embedding"),
    "cosine in the MLP": partial(_cosine, name="Δ, second Δ in mlp"),
    "parameters": partial(_parameters, part="scenarios"),
    "width": partial(_shape, key="width"),
    "seeds": lambda folder: str(len(_scenario(folder, "general"))),
    "points": lambda folder: str(len(summary.load(folder, "distance"))),
    "spread of Δ": _delta_spread,
    "rank of the ratio": partial(_rank, name="shift / delta"),
    "rank of rate × steps": partial(_rank, name="rate × steps"),
    "most kept": partial(_kept_range, pick=max),
    "least kept": partial(_kept_range, pick=min),
    "apart": _apart,
    "wide seeds": lambda folder: str(len(_widest(folder))),
    "gain at the largest width": lambda folder: _of_seeds(
        summary.differences(_widest(folder), "ParamΔ", "post", _widest(folder)[0]["tasks"])
    ),
    "best α": lambda folder: ", ".join(
        _best_alpha(folder, short) for short in ("general", "task", "domain")
    ),
}


def _shipped_share(folder: Path, model: str, capped: bool = False) -> str:
    found = shipped_scores(folder)
    return _plain(_share(found, model, trained(found), capped))


def _shipped_interval(folder: Path, resamples: int = 2000) -> str:
    """95 % bootstrap interval over questions of ParamΔ / direct on the shipped lineage."""
    record = json.loads((folder / "shipped.json").read_text(encoding="utf-8"))
    draw = random.Random(0)
    tasks = trained(shipped_scores(folder))
    found = []
    for _ in range(resamples):
        sums = [0.0, 0.0]
        for task in tasks:
            pair = record["alpha"]["1"][task], record["models"]["direct"][task]
            chosen = draw.choices(range(len(pair[0])), k=len(pair[0]))
            for i, bits in enumerate(pair):
                sums[i] += sum(bits[c] == "1" for c in chosen) / len(bits)
        found.append(efficiency(*sums))
    found.sort()
    low, high = found[round(0.025 * resamples)], found[round(0.975 * resamples) - 1]
    return f"{low:.1f} to {high:.1f}"


def render(template: str, folder: Path) -> str:
    """The template with every number and table computed from the JSON in `folder`.

    Raises KeyError for a name that this module does not know.
    """
    return pages.render(
        template, lambda name: VALUES[name](folder), lambda name: TABLES[name](folder)
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.transfer.page", description=__doc__)
    parser.add_argument("--page", type=Path, default=Path("docs/study.md"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="with the JSON")
    options = parser.parse_args()
    template = TEMPLATE.read_text(encoding="utf-8")
    options.page.write_text(render(template, options.folder), encoding="utf-8")


if __name__ == "__main__":
    main()
