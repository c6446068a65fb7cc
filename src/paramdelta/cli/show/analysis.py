"""Analyses: tables of at most 100 columns, with a sparkline over the layers."""

import itertools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from paramdelta.analysis.analysis import Analysis, Cell
from paramdelta.analysis.measures import DeltaMeasures, Group, Shift
from paramdelta.analysis.verdict import Verdict
from paramdelta.cli.flags import with_flags
from paramdelta.cli.show.events import emit
from paramdelta.cli.show.findings import show_findings
from paramdelta.cli.show.terminal import say
from paramdelta.text import shown
from paramdelta.units import show_count, show_duration, show_size

SPARKS = "▁▂▃▄▅▆▇█"
WIDE = 60  # layers that a sparkline shows, at most
MOST = 8  # tensors that are named
WIDTH = 100  # columns of a line
NARROW = 88  # columns of a line with tokens, some of which may be wide
NAME = 46  # columns of a name
NO_SHIFT = Shift(0.0, None, None, None, None, None)

Number = Callable[[DeltaMeasures], float | None]


def show_analysis(result: Analysis, predict: bool, as_json: bool) -> None:
    """Everything that was measured, in short; whole with ``as_json``. ``predict``: the transfer."""
    if as_json:
        expected = [asdict(each) for each in result.predictions()]
        emit(
            "analysis",
            **result.to_dict(),
            **({"predictions": expected} if predict else {}),
            seconds=round(result.seconds, 3),
            bytes_read=result.read,
        )
        return
    say(result.formula)
    show_findings(result.findings, notes=False)
    for number, name in enumerate(result.deltas):
        base = f" − {name.base}" if name.base is not None else ""
        say("", f"Δ{_tag(result, number)} = {name.post}{base}")
        _show_delta(result, number)
    _show_pairs(result)
    _show_verdict(result.verdict)
    if predict:
        for number, prediction in enumerate(result.predictions()):
            _paragraph(f"expected of Δ{_tag(result, number)}: {prediction}")
    say(
        "",
        f"{show_size(result.read)} read in {show_duration(result.seconds)}; tensors without Δ: "
        f"{result.left}",
    )


def show_report(path: Path, as_json: bool) -> None:
    """Where the report is."""
    if as_json:
        emit("report", file=str(path))
    else:
        say(f"{path}: the report, {show_size(path.stat().st_size)}")


def _tag(result: Analysis, number: int) -> str:
    return "" if len(result.deltas) == 1 else f" {number + 1}"


def _show_delta(result: Analysis, number: int) -> None:
    found = result.all.of(number)
    if found is None:
        say("  no tensor has it")
        return
    beside = f"{'‖S‖/‖Δ‖':>9}{'cos Δ,S':>9}{'cos Θ,Θ′':>10}{'same sign':>11}" if found.shift else ""
    say(
        f"  {'':<12}{'numbers':>9}{'‖Δ‖/‖Θ‖':>10}{beside}{'unchanged':>11}{'lost':>8}"
        f"{'kurtosis':>9}"
    )
    _show_row("all", result.all, number)
    for cell in result.kinds:
        _show_row(cell.name, cell.group, number)
    measures: Sequence[tuple[str, Number, str]] = (
        ("‖Δ‖/‖Θ‖", lambda m: m.relative, ".3g"),
        ("‖S‖/‖Δ‖", lambda m: (m.shift or NO_SHIFT).ratio, ".2f"),
        ("cos Δ,S", lambda m: (m.shift or NO_SHIFT).cosine, ".3f"),
    )
    for label, measure, form in measures:
        _show_layers(label, result.layers, number, measure, form)
    _show_tensors(result, number)
    _show_tokens(result, number)


def _show_row(name: str, group: Group, number: int) -> None:
    found = group.of(number)
    if found is None:
        return
    beside = ""
    if found.shift is not None:
        shift = found.shift
        beside = (
            f"{_text(shift.ratio, '.2f'):>9}{_text(shift.cosine, '.3f'):>9}"
            f"{_text(shift.bases, '.4f'):>10}{_share(shift.agreement):>11}"
        )
    say(
        f"  {name:<12}{show_count(found.elements):>9}{_text(found.relative, '.4f'):>10}{beside}"
        f"{_share(found.unchanged):>11}{_share(found.rounded_away):>8}"
        f"{_text(found.kurtosis, '.1f'):>9}"
    )


def _show_layers(
    label: str, layers: Sequence[Cell], number: int, measure: Number, form: str
) -> None:
    """A line for each stack of layers: its sparkline, least and largest value."""
    for stack in dict.fromkeys(cell.stack for cell in layers):
        found = [cell.group.of(number) for cell in layers if cell.stack == stack]
        values = [value for m in found if m is not None and (value := measure(m)) is not None]
        if len(values) > 1:
            where = f" of {shown(stack, 20)}" if stack else ""
            say(
                f"  {label:<10} by layer{where}  {sparkline(values)}  "
                f"{min(values):{form}} to {max(values):{form}}"
            )


def sparkline(values: Sequence[float], wide: int = WIDE) -> str:
    """A bar for each value, or for the mean of several neighbors; the lowest for the least."""
    if len(values) > wide:
        cuts = [round(at * len(values) / wide) for at in range(wide + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(SPARKS[min(7, int(8 * (value - low) / span))] for value in values)


def _show_tensors(result: Analysis, number: int) -> None:
    found = [(t.name, m) for t in result.tensors if (m := t.group.of(number)) is not None]
    ranked = sorted(found, key=lambda each: -(each[1].relative or 0))[:MOST]
    say(f"  {'changed most':<{NAME}}{'‖Δ‖/‖Θ‖':>10}{'cos Δ,S':>9}{'max |Δ|':>10}{'median |Δ|':>12}")
    for name, m in ranked:
        say(
            f"  {shown(name, NAME - 1):<{NAME}}{_text(m.relative, '.4f'):>10}"
            f"{_text((m.shift or NO_SHIFT).cosine, '.3f'):>9}{m.largest:>10.3g}"
            f"{dict(m.quantiles)[0.5]:>12.3g}"
        )


def _show_tokens(result: Analysis, number: int) -> None:
    for tensor in result.tensors:
        rows = tensor.rows.get(number, ())
        line = f"  rows of {shown(tensor.name, 30)} (× median):"
        for at, row in enumerate(rows):
            name = repr(shown(row.token, 12)) if row.token is not None else f"row {row.row}"
            times = f" {row.norm / row.median:.1f}×" if row.median else ""
            longer = f"{line}{', ' if at else ' '}{name}{times}"
            if len(longer) > NARROW:
                break
            line = longer
        if rows:
            say(line)


def _show_pairs(result: Analysis) -> None:
    if not result.all.pairs:
        return
    say("", f"  {'':<12}{'cosine':>9}{'same sign':>11}")
    for pair in result.all.pairs:
        say(
            f"  Δ {pair.one + 1}, Δ {pair.two + 1:<6}{_text(pair.cosine, '.3f'):>9}"
            f"{_share(pair.agreement):>11}"
        )


def _show_verdict(found: Verdict) -> None:
    for paragraph in found.paragraphs:
        _paragraph(paragraph)
    for flag in found.flags:
        say()
        first, *rest = textwrap.wrap(f"{flag.what}  [{flag.code}]", WIDTH - 12)
        color = "yellow" if flag.severity == "warning" else "cyan"
        say(f" {first}", head=f"  {flag.severity:<9}", color=color)
        remedy = with_flags(flag.remedy)
        for text in (*rest, f"threshold {flag.threshold:g}; {flag.source}", remedy):
            say(*(f"            {line}" for line in textwrap.wrap(text, WIDTH - 12)))
        if flag.where:
            more = f" and {len(flag.where) - 5} more" if len(flag.where) > 5 else ""
            say(f"            in {', '.join(shown(name, 14) for name in flag.where[:5])}{more}")


def _paragraph(text: str) -> None:
    say("", *textwrap.wrap(text, WIDTH))


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
