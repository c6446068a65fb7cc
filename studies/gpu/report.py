"""The plots, and the tables of docs/study-gpu.md, from the results file alone.

    python -m studies.gpu.report docs/study-gpu/results.json

The page's own words stay; what stands between `<!-- name -->` and `<!-- /name -->` is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl

from studies.gpu.experiment import ALPHAS, PARAMDELTA, QUESTIONS, transfer

mpl.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"medicine": "#1b6ca8", "code": "#c8553d"}
SHOWN = {
    "post": "post, unchanged",
    "new": "new base",
    "alpha 0.5": "α = 0.5",
    "alpha 0.8": "α = 0.8",
    PARAMDELTA: "ParamΔ, α = 1",
    "alpha 1.2": "α = 1.2",
    "direct": "direct",
    "random": "random Δ",
    "permuted": "permuted Δ",
}
MODELS = ("new", "post", PARAMDELTA, "direct")  # the rows of the tables
TASKS = {
    "arithmetic": "arithmetic",
    "medicine_old": "old diseases",
    "medicine_new": "new diseases",
    "medicine_unseen": "unseen diseases",
}
TEXTS = {"text_books": "books", "text_medicine": "medical text", "text_code": "code"}


def report(results: Path, page: Path, plots: Path) -> None:
    """Draw the plots into a folder and replace the tables of a page."""
    found = json.loads(results.read_text(encoding="utf-8"))
    _alpha_plot(found, plots / "alpha.png")
    _loss_plot(found, plots / "loss.png")
    _shift_plot(found, plots / "shift.png")
    page.write_text(filled(page.read_text(encoding="utf-8"), found), encoding="utf-8")


def filled(text: str, found: dict) -> str:
    """The text of a page with every table made from the results."""
    tables = {
        "headline": _headline(found),
        "run": _run_table(found),
        "ends": _ends_table(found),
        "transfer": _transfer_table(found),
        "losses": _losses_table(found),
        "text": _text_table(found),
        "behaviour": _behaviour_table(found),
        "norms": _norms_table(found),
        "said": _said(found),
    }
    for name, lines in tables.items():
        block = f"<!-- {name} -->\n{lines}\n<!-- /{name} -->"
        pattern = re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
        text = pattern.sub(lambda _, block=block: block, text)
    return text


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(spread: dict[str, float] | None, scale: float = 1.0, digits: int = 2) -> str:
    """The mean, and the lowest and highest where they differ; a dash for what was not had."""
    if spread is None:
        return "–"
    mean, low, high = (f"{scale * spread[k]:.{digits}f}" for k in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low} to {high})"


def _post_scores(found: dict, line: dict, task: str, measure: str) -> dict[str, float]:
    """A score of the untouched post, over the posts of the seeds that `line` sums up."""
    cells = _cells(found, line)
    return _spread([_post_of(found, cell)["scores"][task][measure] for cell in cells])


def _post_recovered(found: dict, line: dict) -> dict[str, float] | None:
    """The share of the loss gap that the untouched post closes, measured as for a mix."""
    parts = [
        transfer(_post_of(found, cell)["scores"], cell["scores"]["new"], cell["scores"]["direct"])
        for cell in _cells(found, line)
    ]
    if any("recovered" not in part for part in parts):
        return None
    return _spread([part["recovered"] for part in parts])


def _cells(found: dict, line: dict) -> list[dict]:
    key = (line["domain"], line["steps"])
    return [cell for cell in found["cells"] if (cell["domain"], cell["steps"]) == key]


def _post_of(found: dict, cell: dict) -> dict:
    """The post from which the cell's mixes were made."""
    wanted = ("post", cell["seed"])
    return next(m for m in found["models"] if (m["model"], m["seed"]) == wanted)


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "low": min(values), "high": max(values)}


def _headline(found: dict) -> str:
    """One line for each kind of new base: what post, α = 1, the best α and a control recover."""
    lines = []
    for line in found["summary"]:
        recovered = {m: line["transfer"][m].get("recovered") for m in _mixes()}
        if None in recovered.values():
            continue
        best = max((f"alpha {a}" for a in ALPHAS), key=lambda m: recovered[m]["mean"])
        lines.append(
            f"- Continued on {line['domain']} for {line['steps']} steps: ParamΔ with α = 1 "
            f"recovers {_number(recovered[PARAMDELTA], 100, 0)} % of what direct chat training "
            f"gains, the best α tried ({best.split()[1]}) {_number(recovered[best], 100, 0)} %; "
            f"the old post, unchanged, {_number(_post_recovered(found, line), 100, 0)} %; "
            f"a random Δ of the same norm {_number(recovered['random'], 100, 0)} %."
        )
    return "\n".join(lines)


def _run_table(found: dict) -> str:
    size, machine = found["size"], found["machine"]
    stages = found["stages"]
    base = stages[0]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    tokens_a_step = size["rows"] * size["length"]
    lengths = sorted({line["steps"] for line in found["summary"]})
    return _table(
        ("", ""),
        (
            ("command", f"`{found['command']}`"),
            ("machine", f"{machine['device']}, {machine['cpus']} CPU cores"),
            ("software", f"Python {machine['python']}, {versions}"),
            ("model", f"{size['name']}: {size['parameters']:,} parameters"),
            ("base trained on", f"{base['steps'] * tokens_a_step:,} tokens"),
            ("chat training", f"{size['chat_steps'] * tokens_a_step:,} tokens"),
            (
                "continuations",
                ", ".join(f"{s * tokens_a_step:,}" for s in lengths) + " tokens",
            ),
            (
                "held-out questions of each kind",
                f"{size['scored']} scored, {size['answered']} answered greedily",
            ),
            ("speed", f"{base['tokens_a_second']:,.0f} tokens a second"),
            ("new bases", str(len(found["cells"]))),
            ("whole run", f"{found['wall_seconds'] / 60:.0f} minutes"),
        ),
    )


def _ends_table(found: dict) -> str:
    """Base and post, the first seed of each."""
    rows = []
    for name in ("base", "post"):
        scores = next(m["scores"] for m in found["models"] if m["model"] == name)
        rows.append([name, *(f"{scores[task]['loss']:.3f}" for task in (*TASKS, *TEXTS))])
    return _table(["model", *TASKS.values(), *TEXTS.values()], rows)


def _transfer_table(found: dict) -> str:
    rows = [
        [
            line["domain"],
            str(line["steps"]),
            str(line["seeds"]),
            _number(_post_recovered(found, line), 100, 0),
            *(_number(line["transfer"][m].get("recovered"), 100, 0) for m in _mixes()),
        ]
        for line in found["summary"]
    ]
    mixes = [SHOWN[m] for m in _mixes()]
    return _table(["continued on", "steps", "seeds", "post, unchanged", *mixes], rows)


def _score(found: dict, line: dict, model: str, task: str, measure: str) -> dict[str, float]:
    """A score of a model of the line, or of the untouched post."""
    if model == "post":
        return _post_scores(found, line, task, measure)
    return line["scores"][model][task][measure]


def _losses_table(found: dict) -> str:
    rows = [
        [
            line["domain"],
            str(line["steps"]),
            SHOWN[model],
            *(_number(_score(found, line, model, task, "loss"), 1, 3) for task in TASKS),
            _number(_score(found, line, model, "arithmetic", "accuracy"), 100, 1),
        ]
        for line in found["summary"]
        for model in MODELS
    ]
    return _table(
        ["continued on", "steps", "model", *TASKS.values(), "arithmetic tokens right, %"], rows
    )


def _text_table(found: dict) -> str:
    rows = [
        [
            line["domain"],
            str(line["steps"]),
            SHOWN[model],
            *(_number(_score(found, line, model, task, "loss"), 1, 3) for task in TEXTS),
        ]
        for line in found["summary"]
        for model in MODELS
    ]
    return _table(["continued on", "steps", "model", *TEXTS.values()], rows)


def _behaviour_table(found: dict) -> str:
    rows = [
        [
            line["domain"],
            str(line["steps"]),
            SHOWN[model],
            *(
                _number(_score(found, line, model, task, measure), 100, 0)
                for task, measure in (
                    ("arithmetic", "ended"),
                    ("arithmetic", "form"),
                    ("arithmetic", "right"),
                    ("medicine_new", "ended"),
                )
            ),
        ]
        for line in found["summary"]
        for model in MODELS
    ]
    head = ["arithmetic ended", "`#### number`", "right number", "medicine ended"]
    return _table(["continued on", "steps", "model", *head], rows)


def _norms_table(found: dict) -> str:
    rows = [
        [
            line["domain"],
            str(line["steps"]),
            *(
                _number(line["norms"][n])
                for n in (
                    "delta",
                    "shift",
                    "shift_over_delta",
                    "cosine_delta_shift",
                    "cosine_delta_direct",
                )
            ),
        ]
        for line in found["summary"]
    ]
    head = ["‖Δ‖", "‖shift‖", "shift / Δ", "cos(Δ, shift)", "cos(Δ, direct's Δ)"]
    return _table(["continued on", "steps", *head], rows)


def _said(found: dict) -> str:
    """What base, post, and the models of the first medical new base said to one question."""
    said = {m["model"]: m["said"] for m in reversed(found["models"])}
    cell = next(c for c in found["cells"] if c["domain"] == "medicine")
    said |= {SHOWN[name]: texts for name, texts in cell["said"].items()}
    lines = []
    for task in said["base"]:
        texts = {"asked": said["base"][task]["asked"], "wanted": said["base"][task]["wanted"]}
        texts |= {model: answers[task]["said"] for model, answers in said.items()}
        lines.append("```text")
        for name, text in texts.items():
            short = " ".join(text.split())
            lines.append(f"{name + ':':14} {short[:300]}{' […]' if len(short) > 300 else ''}")
        lines.append("```")
    return "\n".join(lines)


def _mixes() -> list[str]:
    return [*(f"alpha {a}" for a in ALPHAS), "random", "permuted"]


def _alpha_plot(found: dict, path: Path) -> None:
    """The share of the gap recovered, against α, one line for each new base."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    longest = max(line["steps"] for line in found["summary"])
    for line in found["summary"]:
        points = [line["transfer"][f"alpha {a}"]["recovered"] for a in ALPHAS]
        axes.errorbar(
            [0, *ALPHAS],
            [0, *(100 * p["mean"] for p in points)],
            yerr=[
                [0, *(100 * (p["mean"] - p["low"]) for p in points)],
                [0, *(100 * (p["high"] - p["mean"]) for p in points)],
            ],
            color=COLOURS[line["domain"]],
            alpha=1 if line["steps"] == longest else 0.5,
            marker="o",
            capsize=3,
            linestyle="-" if line["steps"] == longest else "--",
            label=f"{line['domain']}, {line['steps']} steps",
        )
    axes.axhline(100, color="grey", linewidth=1)
    axes.annotate("direct", (0, 100), xytext=(0, 4), textcoords="offset points", color="grey")
    axes.set_xlabel("α")
    axes.set_ylabel("share of the loss gap recovered, %")
    axes.set_title("ParamΔ between the new base (0) and direct chat training (100)")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _loss_plot(found: dict, path: Path) -> None:
    """Answer loss on each set of questions after the longest continuation on each domain."""
    longest = max(line["steps"] for line in found["summary"])
    lines = [line for line in found["summary"] if line["steps"] == longest]
    models = {"new": "#b0b7bf", PARAMDELTA: "#1b6ca8", "direct": "#123a5a", "random": "#e5c07b"}
    figure, panels = plt.subplots(
        1, len(lines), figsize=(4.6 * len(lines), 4), layout="constrained", sharey=True
    )
    for line, axes in zip(lines, [panels] if len(lines) == 1 else panels, strict=True):
        for number, (model, colour) in enumerate(models.items()):
            spread = [line["scores"][model][task]["loss"] for task in QUESTIONS]
            axes.bar(
                [place + 0.2 * (number - 1.5) for place in range(len(QUESTIONS))],
                [s["mean"] for s in spread],
                0.19,
                yerr=[
                    [s["mean"] - s["low"] for s in spread],
                    [s["high"] - s["mean"] for s in spread],
                ],
                color=colour,
                label=SHOWN[model],
                error_kw={"linewidth": 1},
            )
        axes.set_xticks(range(len(QUESTIONS)), [t.replace(" ", "\n") for t in TASKS.values()])
        axes.set_title(f"continued on {line['domain']}, {line['steps']} steps")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("loss on answers, nats a token")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        frameon=False,
        ncols=4,
        loc="outside lower center",
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _shift_plot(found: dict, path: Path) -> None:
    """Transfer at α = 1 against how far the new base has moved; one dot for each new base."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for domain, colour in COLOURS.items():
        cells = [c for c in found["cells"] if c["domain"] == domain]
        axes.scatter(
            [c["norms"]["shift_over_delta"] for c in cells],
            [100 * c["transfer"][PARAMDELTA]["recovered"] for c in cells],
            color=colour,
            label=domain,
        )
    axes.axhline(100, color="grey", linewidth=1)
    axes.set_xlabel("‖Θ'_base − Θ_base‖ / ‖Θ_post − Θ_base‖")
    axes.set_ylabel("share of the loss gap recovered, %")
    axes.set_title("Transfer at α = 1 against the move of the base")
    axes.axhline(0, color="lightgrey", linewidth=1)
    axes.set_xlim(left=0)
    axes.set_ylim(top=110)
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m studies.gpu.report", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--page", type=Path, default=Path("docs/study-gpu.md"))
    arguments = parser.parse_args()
    report(arguments.results, arguments.page, arguments.results.parent)
