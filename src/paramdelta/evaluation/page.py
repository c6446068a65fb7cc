"""The report as one HTML page without scripts: tables, the scatter plot, answers that differ.

All text of questions and answers is escaped. The page's own policy forbids scripts and requests.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from paramdelta.evaluation.evaluator import Evaluation
from paramdelta.evaluation.harness import Answered
from paramdelta.evaluation.report import DEFINITIONS, DIRECT
from paramdelta.text import printable

MOST = 40  # differing questions of a task that are shown
LONGEST = 1500  # characters of a prompt or an answer that are shown
_SIZE, _EDGE = 360, 44

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .6rem; }
.right { border-left: 4px solid #2a8; } .wrong { border-left: 4px solid #c54; }
.small { color: #888; font-size: .85rem; }
"""


def page(read: Mapping[str, Any], found: Evaluation) -> str:
    """The page, from `report.facts` and the samples."""
    title = f"Evaluation: suite {read['suite']}"
    body = [
        f"<h1>{_text(title)}</h1>",
        f"<p class=small>{_text(', '.join(f'{k} {v}' for k, v in read['versions'].items()))}</p>",
        "<h2>Scores</h2>",
        "<p>Percent, with standard errors over questions.</p>",
        _scores(read),
    ]
    for mix, values in read["transfer"].items():
        body += [f"<h2>Transfer: {_text(mix)}</h2>", _transfer(values), scatter(read, mix)]
    body += ["<h2>Answers that differ</h2>"]
    body += [_differing(task, row) for task, row in found.answers.items()]
    body += [_limits(read)]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\n"
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name=viewport content="width=device-width">\n'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def scatter(read: Mapping[str, Any], mix: str) -> str:
    """Score of the mix against that of direct, by task: SVG. "" if there is no direct."""
    points = [
        (task, row[DIRECT]["value"], row[mix]["value"])
        for task, row in read["scores"].items()
        if DIRECT in row and mix in row
    ]
    if not points:
        return ""
    inner = _SIZE - 2 * _EDGE

    def at(x: float, y: float) -> tuple[float, float]:
        return _EDGE + inner * min(max(x, 0), 1), _SIZE - _EDGE - inner * min(max(y, 0), 1)

    slope = read["transfer"][mix].get("line", {}).get("slope", {}).get("value")
    parts = [_line(at(0, 0), at(1, 1), "#888", "4 4")]
    if slope is not None and slope > 0:
        reach = min(1.0, 1 / slope)
        parts.append(_line(at(0, 0), at(reach, slope * reach), "#27c", ""))
    for task, x, y in points:
        left, top = at(x, y)
        label = _text(f"{task}: direct {100 * x:.1f}, {mix} {100 * y:.1f}")
        parts.append(
            f'<circle cx="{left:.1f}" cy="{top:.1f}" r="5" fill="#27c" fill-opacity=".7">'
            f"<title>{label}</title></circle>"
        )
    for tick in (0, 0.5, 1):
        (left, _), (_, top) = at(tick, 0), at(0, tick)
        label = f"{100 * tick:.0f}"
        parts.append(_label(left, _SIZE - _EDGE + 16, "middle", label))
        parts.append(_label(_EDGE - 6, top + 4, "end", label))
    parts.append(_label(_SIZE / 2, _SIZE - 8, "middle", f"{DIRECT}, %"))
    parts.append(_label(_EDGE, _EDGE - 12, "start", f"{mix}, %"))
    return (
        f'<svg role="img" aria-label="Score of {_text(mix)} against direct by task" '
        f'viewBox="0 0 {_SIZE} {_SIZE}" width="{_SIZE}" font-size="12" fill="currentColor">'
        + "".join(parts)
        + "</svg><p class=small>Each point is a task; dashed: equal scores; blue: γ.</p>"
    )


def _line(start: tuple[float, float], end: tuple[float, float], color: str, dashes: str) -> str:
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
        f'stroke="{color}" stroke-dasharray="{dashes}"/>'
    )


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text)}</text>'


def _scores(read: Mapping[str, Any]) -> str:
    rows = [
        [task, *(_mean(row.get(model)) for model in read["models"])]
        for task, row in read["scores"].items()
    ]
    if read["average"]:
        rows.append(["average", *(_mean(read["average"].get(m)) for m in read["models"])])
    return _table(["task", *read["models"]], rows)


def _mean(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    error = "" if cell["error"] is None else f" ± {100 * cell['error']:.1f}"
    return f"{100 * cell['value']:.1f}{error}"


def _transfer(found: Mapping[str, Any]) -> str:
    names = [name for name in DEFINITIONS if name in found]
    tasks = dict.fromkeys(task for name in names for task in found[name]["tasks"])
    rows = [[t, *(_estimate(found[n]["tasks"].get(t), "items") for n in names)] for t in tasks]
    rows.append(["all, other questions", *(_estimate(found[n]["all"], "items") for n in names)])
    rows.append(["all, other tasks", *(_estimate(found[n]["all"], "tasks") for n in names)])
    said = " ".join(f"{name}: {DEFINITIONS[name]}." for name in names)
    return f"<p>{_text(said)} Percent, with 95 % intervals.</p>" + _table(["task", *names], rows)


def _estimate(found: Mapping[str, Any] | None, over: str) -> str:
    if found is None or found["value"] is None:
        return "–"
    ends = found[over]
    interval = f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else ""
    return f"{100 * found['value']:.1f}{interval}"


def _differing(task: str, row: Mapping[str, Answered]) -> str:
    by_item = {m: {s.item: s for s in a.samples} for m, a in row.items()}
    common = set.intersection(*(set(each) for each in by_item.values()))
    first = next(iter(row.values()))
    items = [
        s.item
        for s in first.samples
        if s.item in common and len({each[s.item].score for each in by_item.values()}) > 1
    ]
    head = f"<h3>{_text(task)}: {len(items)} of {len(common)} questions</h3>"
    shown = []
    for item in items[:MOST]:
        samples = {model: each[item] for model, each in by_item.items()}
        one = next(iter(samples.values()))
        verdicts = ", ".join(f"{m} {s.score:g}" for m, s in samples.items())
        shown.append(
            f"<details><summary>{_text(item)}: {_text(verdicts)}</summary>"
            f"<pre>{_text(one.prompt[-LONGEST:])}</pre>"
            f"<p class=small>right answer</p><pre>{_text(one.target[:LONGEST])}</pre>"
            + "".join(
                f"<p class=small>{_text(model)}: {sample.score:g}</p>"
                f"<pre class={'right' if sample.score >= 0.5 else 'wrong'}>"
                f"{_text(sample.answer[:LONGEST])}</pre>"
                for model, sample in samples.items()
            )
            + "</details>"
        )
    more = f"<p class=small>and {len(items) - MOST} more</p>" if len(items) > MOST else ""
    return head + "\n".join(shown) + more


def _limits(read: Mapping[str, Any]) -> str:
    lines = [
        f"{task}, {model}: {note}"
        for task, row in read["notes"].items()
        for model, notes in row.items()
        for note in notes
    ]
    lines += [f"{f['task']}, {f['model']}: no score: {f['what']}" for f in read["failures"]]
    lines += [f"{task}: not in the suite: {why}" for task, why in read["missing"].items()]
    items = "".join(f"<li>{_text(each)}</li>" for each in lines)
    return f"<h2>Limits</h2><ul>{items}</ul>" if lines else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: str) -> str:
    return escape(printable(value))
