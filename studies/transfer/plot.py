"""Draws the study's plots from its JSON: `python -m studies.transfer.plot [NAME ...]`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from studies.transfer import summary
from studies.transfer.figures import interval

COLORS = {
    "base": "#b8b8b8",
    "post": "#e0a458",
    "post 2": "#c98b3a",
    "new base": "#7f9ab5",
    "ParamΔ": "#1b6ca8",
    "direct": "#2e7d4f",
}


def scenarios(folder: Path) -> Figure:
    """Mean score of every model in every scenario, with 95 % intervals over seeds."""
    results = summary.load(folder, "scenarios")
    names = summary.scenario_names(results)
    figure, axes = plt.subplots(figsize=(9, 3.8))
    shown: set[str] = set()
    for place, name in enumerate(names):
        chosen = summary.of_scenario(results, name)
        models = [m for m in summary.MODELS if summary.model_average(chosen, m)]
        for i, model in enumerate(models):
            mean, half = summary.model_average(chosen, model) or (0, 0)
            axes.bar(
                place + (i - (len(models) - 1) / 2) * 0.14,
                mean,
                0.13,
                yerr=half,
                color=COLORS[model],
                label=None if model in shown else model,
                error_kw={"lw": 0.8},
            )
            shown.add(model)
    axes.set_xticks(range(len(names)), [name.replace(" with ", "\nwith ") for name in names])
    axes.set_ylabel("exactly right, % (mean over tasks)")
    axes.set_ylim(0, 122)
    axes.set_yticks(range(0, 101, 20))
    axes.legend(ncols=6, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.14), frameon=False)
    return figure


def gamma(folder: Path) -> Figure:
    """ParamΔ against direct, a point for each task and seed, with the line through zero."""
    results = summary.load(folder, "scenarios")
    names = summary.scenario_names(results)
    figure, grid = plt.subplots(1, len(names), figsize=(3 * len(names), 3.2), sharey=True)
    for axes, name in zip(grid, names, strict=True):
        chosen = summary.of_scenario(results, name)
        direct, mixed = summary.pairs(chosen)
        slope, fit = summary.gamma_of(chosen)
        axes.scatter(direct, mixed, s=14, alpha=0.6, color=COLORS["ParamΔ"])
        axes.plot([0, 100], [0, 100 * slope], color="black", lw=1)
        axes.plot([0, 100], [0, 100], color="#bbbbbb", lw=0.8, ls="--")
        axes.set_title(f"{name}\nγ = {slope:.3f}, R² = {fit:.2f}", fontsize=8.5)
        axes.set_xlabel("direct, %")
    grid[0].set_ylabel("ParamΔ, %")
    return figure


def alpha(folder: Path) -> Figure:
    """ParamΔ in percent of direct against α, with 95 % intervals; dotted, the untouched post."""
    results = summary.load(folder, "scenarios")
    figure, axes = plt.subplots(figsize=(6.5, 3.8))
    for name in summary.scenario_names(results):
        chosen = summary.of_scenario(results, name)
        curve = summary.alpha_curve(chosen)
        x = [float(a) for a in curve]
        mean = [value for value, _ in curve.values()]
        half = [h for _, h in curve.values()]
        (line,) = axes.plot(x, mean, marker="o", ms=3, label=name)
        axes.fill_between(
            x,
            [m - h for m, h in zip(mean, half, strict=True)],
            [m + h for m, h in zip(mean, half, strict=True)],
            color=line.get_color(),
            alpha=0.15,
        )
        post = interval(summary.shares_of_direct(chosen, "post"))[0]
        axes.axhline(post, color=line.get_color(), lw=1, ls=":")
    axes.axvline(1, color="#bbbbbb", lw=0.8, ls="--")
    axes.set_xlabel("α")
    axes.set_ylabel("% of direct (dotted: post, unchanged)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return figure


def distance(folder: Path) -> Figure:
    """ParamΔ in percent of direct against each predictor, a point for each continued base."""
    points = summary.load(folder, "distance")
    table = summary.predictions(points)
    names = ("shift / delta", "cosine", "barrier")
    labels = (
        "‖new base − base‖ / ‖post − base‖",
        "cosine of Δ and shift",
        "loss barrier, nats a token",
    )
    figure, grid = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True)
    rates = sorted({point["rate"] for point in points})
    for axes, name, label in zip(grid, names, labels, strict=True):
        for rate in rates:
            chosen = [p for p in points if p["rate"] == rate]
            axes.scatter(
                [p["measures"][name] for p in chosen],
                [p["efficiency"] for p in chosen],
                s=18,
                label=f"rate {rate:g}",
            )
        rank = table[name]["rank"]
        axes.set_title(
            "no differences" if math.isnan(rank) else f"rank correlation {rank:.2f}", fontsize=9
        )
        axes.set_xlabel(label)
    grid[0].set_xscale("log", base=2)
    grid[0].xaxis.set_major_formatter("{x:g}")
    grid[2].set_xscale("symlog", linthresh=0.01)
    grid[0].set_ylabel("ParamΔ, % of direct")
    grid[0].legend(fontsize=8)
    return figure


_NAMES = {
    "nothing": "all of Δ",
    **{part: f"without {part}" for part in ("embedding", "attention", "norms")},
    "mlp": "without MLP",
}


def causes(folder: Path) -> Figure:
    """Mean scores with a part of Δ left out, and with a Δ that should not work."""
    figure, grid = plt.subplots(2, 1, figsize=(7, 4.8), sharex=True, layout="constrained")
    for axes, part, key in zip(grid, ("parts", "controls"), ("without", "controls"), strict=True):
        table = summary.score_table(summary.load(folder, part), key)
        cases = list(table)[::-1]
        axes.barh(
            [_NAMES.get(case, case) for case in cases],
            [table[case][0] for case in cases],
            xerr=[table[case][1] for case in cases],
            color=COLORS["ParamΔ"],
            error_kw={"lw": 0.8},
        )
        axes.set_xlim(0, 105)
    grid[1].set_xlabel("exactly right, % (mean over tasks)")
    return figure


def widths(folder: Path) -> Figure:
    """Mean scores at each width, and ParamΔ in percent of direct, capped task by task."""
    results = summary.load(folder, "widths")
    sizes = sorted({result["width"] for result in results})
    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    offsets = {"post": 0.97, "ParamΔ": 1.0, "direct": 1.03}
    for model, offset in offsets.items():
        curve = [
            summary.model_average([r for r in results if r["width"] == size], model) or (0, 0)
            for size in sizes
        ]
        axes.errorbar(
            [size * offset for size in sizes],
            [m for m, _ in curve],
            [h for _, h in curve],
            label=model,
            color=COLORS[model],
            capsize=3,
        )
    kept = [
        interval(
            summary.shares_of_direct([r for r in results if r["width"] == size], "ParamΔ", True)
        )[0]
        for size in sizes
    ]
    label = "ParamΔ, capped, % of direct"
    axes.plot(sizes, kept, color="black", ls="--", marker="o", ms=3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("width")
    axes.set_ylabel("%")
    axes.legend(fontsize=8)
    return figure


PLOTS: dict[str, tuple[str, Callable[[Path], Figure]]] = {
    "scenarios": ("scenarios", scenarios),
    "gamma": ("scenarios", gamma),
    "alpha": ("scenarios", alpha),
    "distance": ("distance", distance),
    "causes": ("controls", causes),
    "widths": ("widths", widths),
}


def main() -> None:
    """Draw the named plots, or all of which the JSON is there."""
    parser = argparse.ArgumentParser(prog="python -m studies.transfer.plot", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PLOTS))
    parser.add_argument("--folder", type=Path, default=Path("docs/study"), help="with the JSON")
    options = parser.parse_args()
    for name in options.names or PLOTS:
        part, draw = PLOTS[name]
        if summary.load(options.folder, part):
            figure = draw(options.folder)
            figure.savefig(options.folder / f"{name}.png", dpi=110, bbox_inches="tight")
            plt.close(figure)
            print(options.folder / f"{name}.png")


if __name__ == "__main__":
    main()
