"""What an evaluation says: as plain values, and as Markdown."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from paramdelta.evaluation.evaluator import Evaluation
from paramdelta.evaluation.models import MIX
from paramdelta.evaluation.statistics import (
    LEAST_TASKS,
    Estimate,
    Table,
    adjusted,
    difference,
    efficiency,
    gain,
    line,
)
from paramdelta.text import markdown

DIRECT = "direct"
DEFINITIONS = {
    "of direct": f"{MIX} / {DIRECT}",
    "of what direct adds": f"({MIX} − new base) / ({DIRECT} − new base)",
    "of post": f"{MIX} / post",
}
_COMPARED = (DIRECT, "post", "new-base")


def facts(found: Evaluation) -> dict[str, Any]:
    """Everything that the evaluation found, as plain values for JSON."""
    table = found.table()
    return {
        "suite": found.suite.name,
        "limit": found.limit,
        "models": list(found.models),
        "mixes": list(found.mixes),
        "versions": found.versions,
        "scores": {
            task: {
                model: asdict(mean)
                for model in found.models
                if (mean := table.mean(task, model)) is not None
            }
            for task in table.tasks
        },
        "average": averages(table, found.models),
        "transfer": {mix: transfer(table, mix) for mix in found.mixes},
        "differences": differences(table, found.mixes),
        "notes": {
            task: {model: list(a.notes) for model, a in row.items() if a.notes}
            for task, row in found.answers.items()
        },
        "failures": [asdict(failure) for failure in found.failures],
        "missing": dict(found.suite.missing),
    }


def averages(table: Table, models: tuple[str, ...]) -> dict[str, Any]:
    """The mean over those tasks that every model has; {} if there is none."""
    shared = table.having(*models)
    found = {m: mean for m in models if shared.tasks and (mean := shared.average(m)) is not None}
    return {model: asdict(mean) for model, mean in found.items()}


def transfer(table: Table, mix: str) -> dict[str, Any]:
    """Transfer efficiency by each definition, on average and by task; and the line."""
    result: dict[str, Any] = {}
    for name in DEFINITIONS:
        others = _others(name)
        chosen = table.having(mix, *others)
        if chosen.tasks:
            result[name] = {
                "all": asdict(_defined(chosen, mix, name)),
                "tasks": {t: asdict(_defined(chosen.only(t), mix, name)) for t in chosen.tasks},
            }
    if table.having(mix, DIRECT).tasks:
        result["line"] = asdict(line(table, mix, DIRECT))
    return result


def differences(table: Table, mixes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every mix against direct, post and new base, item by item, with p-values for all together."""
    rows = [
        {"task": task, "first": mix, "second": other, **asdict(difference(table, task, mix, other))}
        for mix in mixes
        for other in _COMPARED
        for task in table.having(mix, other).tasks
    ]
    together = adjusted([row["p"] for row in rows])
    return [row | {"adjusted_p": p} for row, p in zip(rows, together, strict=True)]


def _others(definition: str) -> tuple[str, ...]:
    return {"of direct": (DIRECT,), "of post": ("post",)}.get(definition, (DIRECT, "new-base"))


def _defined(table: Table, mix: str, definition: str) -> Estimate:
    if definition == "of what direct adds":
        return gain(table, mix, DIRECT, "new-base")
    return efficiency(table, mix, *_others(definition))


# -- Markdown --------------------------------------------------------------------------------------


def report(read: Mapping[str, Any]) -> str:
    """The report in Markdown, from `facts`."""
    limit = f", at most {read['limit']} questions of each task" if read["limit"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in read["versions"].items())
    parts = [
        f"# Evaluation: suite {markdown(read['suite'])}{limit}",
        versions,
        "## Scores",
        "Percent, with standard errors over questions.",
        scores(read),
        *_published(read),
        *(_transferred(mix, found) for mix, found in read["transfer"].items()),
        *_differing(read["differences"]),
        *_limits(read),
    ]
    return "\n\n".join(parts) + "\n"


def scores(read: Mapping[str, Any]) -> str:
    """The table of tasks × models."""
    models = read["models"]
    rows = [
        [
            task,
            *(_mean(row.get(model)) for model in models),
            str(max(c["items"] for c in row.values())),
        ]
        for task, row in read["scores"].items()
    ]
    if read["average"]:
        rows.append(["average", *(_mean(read["average"].get(model)) for model in models), ""])
    return _table(["task", *models, "questions"], rows)


def _transferred(mix: str, found: Mapping[str, Any]) -> str:
    names = [name for name in DEFINITIONS if name in found]
    if not names:
        return f"## Transfer: {markdown(mix)}\n\nNeither direct nor post was evaluated."
    tasks = dict.fromkeys(task for name in names for task in found[name]["tasks"])
    rows = [[t, *(_estimate(found[n]["tasks"].get(t), "items") for n in names)] for t in tasks]
    rows.append(["all, other questions", *(_estimate(found[n]["all"], "items") for n in names)])
    rows.append(["all, other tasks", *(_estimate(found[n]["all"], "tasks") for n in names)])
    text = [
        f"## Transfer: {markdown(mix)}",
        "Percent, with 95 % intervals. "
        + " ".join(f"*{name}*: {DEFINITIONS[name]}." for name in names)
        + " The intervals of the last line say what other tasks of this kind would give; they need "
        f"{LEAST_TASKS} tasks. A dash: undefined, because the reference scores nothing.",
        _table(["task", *names], rows),
    ]
    if "line" in found and found["line"]["slope"]["value"] is not None:
        slope = found["line"]["slope"]
        r2 = found["line"]["r2"]
        text.append(
            f"Over tasks, score of {markdown(mix)} = γ · score of direct: "
            f"γ = {_number(slope['value'], 3)}{_interval(slope['items'], 3)}, "
            f"R² = {_number(r2, 2)}."
        )
    return "\n\n".join(text)


def _published(read: Mapping[str, Any]) -> list[str]:
    """Published scores beside those of this run."""
    if "reference" not in read:
        return []
    rows = [
        [f"{task}, {model}", _mean(read["scores"].get(task, {}).get(model)), f"{value:.1f}"]
        for task, row in read["reference"]["scores"].items()
        for model, value in row.items()
    ]
    return [
        "## Published scores",
        f"From {markdown(read['reference']['source'])}. Prompts and versions can differ.",
        _table(["task, model", "here", "published"], rows),
    ]


def _differing(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    cells = [
        [
            row["task"],
            f"{row['first']} − {row['second']}",
            f"{100 * row['value']:+.1f}{_interval(row['interval'], 1, 100)}",
            "" if row["only_first"] is None else f"{row['only_first']} : {row['only_second']}",
            _p(row["adjusted_p"]),
            row["test"],
        ]
        for row in rows
    ]
    return [
        "## Item by item",
        (
            "Differences in points, with 95 % intervals: what lies outside can be excluded. *Only "
            "one right*: questions that only the first, and only the second, has right. p is "
            f"adjusted for the {len(rows)} tests of this table (Holm)."
        ),
        _table(["task", "models", "difference", "only one right", "p", "test"], cells),
    ]


def _limits(read: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {markdown(task)}, {markdown(model)}: {markdown(note)}"
        for task, row in read["notes"].items()
        for model, notes in row.items()
        for note in notes
    ]
    lines += [
        f"- {markdown(each['task'])}, {markdown(each['model'])}: no score: {markdown(each['what'])}"
        for each in read["failures"]
    ]
    lines += [
        f"- {markdown(t)}: not in the suite: {markdown(why)}" for t, why in read["missing"].items()
    ]
    return ["## Limits", "\n".join(lines)] if lines else []


def _table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    shown = [[markdown(row[0]), *row[1:]] for row in rows]  # other cells are ours
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *shown))


def _mean(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    error = "" if cell["error"] is None else f" ± {100 * cell['error']:.1f}"
    return f"{100 * cell['value']:.1f}{error}"


def _estimate(found: Mapping[str, Any] | None, over: str) -> str:
    if found is None or found["value"] is None:
        return "–"
    return f"{100 * found['value']:.1f}{_interval(found[over], 1, 100)}"


def _interval(ends: Any, digits: int, factor: float = 1) -> str:
    if ends is None:
        return ""
    return f" ({factor * ends[0]:.{digits}f} to {factor * ends[1]:.{digits}f})"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _p(value: float) -> str:
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"
