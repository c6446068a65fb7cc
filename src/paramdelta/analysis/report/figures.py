"""The figures of one Δ: what each shows, its reading in one sentence, and its numbers."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paramdelta.analysis.measures import DeltaMeasures
from paramdelta.analysis.report import svg
from paramdelta.jobs.spectra import RANKS
from paramdelta.jobs.tally import edge
from paramdelta.planning.kinds import KINDS

if TYPE_CHECKING:
    from paramdelta.analysis.analysis import Analysis

Value = float | None
Row = tuple[str, Sequence[Value]]
BARS = 40  # of a histogram, at the most


@dataclass(frozen=True)
class Figure:
    """``form``: map, signs (a map with both signs), lines or bars. ``svg``: the picture.
    ``reading``: what it says. ``head``, ``rows``: its numbers; the first column has names.
    """

    name: str
    form: str
    title: str
    svg: str
    reading: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]


def figures(analysis: "Analysis", number: int) -> Iterator[Figure]:
    """All figures of one Δ that can be drawn."""
    if len(analysis.layers) > 1:
        yield _map(
            analysis, number, "norms", "Relative size, ‖Δ‖ / ‖Θ_base‖", _relative, signed=False
        )
        if _has_shift(analysis, number):
            yield _map(analysis, number, "cosines", "Cosine of Δ and shift", _cosine, signed=True)
        yield _profile(analysis, number)
        heads = _heads(analysis, number)
        if heads is not None:
            yield heads
    yield _sizes(analysis, number)
    spectra = _spectra(analysis, number)
    if spectra is not None:
        yield spectra


def matrix(analysis: "Analysis") -> Figure | None:
    """Cosines of all Δs, and of each with its shift; None for a single Δ."""
    numbers = [m.delta for m in analysis.all.deltas]
    if len(numbers) < 2:
        return None
    cosines: dict[tuple[int, int], Value] = {(p.one, p.two): p.cosine for p in analysis.all.pairs}
    names = [f"Δ {n + 1}" for n in numbers]
    values: list[list[Value]] = []
    for i in numbers:
        found = analysis.all.of(i)
        assert found is not None
        row: list[Value] = [1.0 if i == j else cosines.get((min(i, j), max(i, j))) for j in numbers]
        values.append([*row, _cosine(found)])
    columns = [*names, "shift"]
    others = [c for c in cosines.values() if c is not None]
    most = max(others, default=0.0)
    reading = f"The largest cosine of two Δs is {most:.3f}: " + (
        "they share a part." if most >= 0.2 else "they are nearly orthogonal."
    )
    title = "Cosines of the Δs"
    return Figure(
        "matrix",
        "signs",
        title,
        svg.heat_map(
            names, columns, values, title=title, reading=reading, signed=True, form=".2f",
            written=True,
        ),
        reading,
        ("", *columns),
        tuple(zip(names, values, strict=True)),
    )  # fmt: skip


def _relative(found: DeltaMeasures) -> Value:
    return found.relative


def _cosine(found: DeltaMeasures) -> Value:
    return found.shift.cosine if found.shift is not None else None


def _has_shift(analysis: "Analysis", number: int) -> bool:
    found = analysis.all.of(number)
    return found is not None and _cosine(found) is not None


def _map(
    analysis: "Analysis",
    number: int,
    name: str,
    title: str,
    measure: Callable[[DeltaMeasures], Value],
    signed: bool,
) -> Figure:
    """Layers by kinds. Norms and biases, whose sizes are others, are left to the table."""
    there = {cell.kind for cell in analysis.cells} - {"norm", "bias"}
    kinds = [kind for kind in KINDS if kind in there]
    known = {(c.stack, c.layer, c.kind): c.group.of(number) for c in analysis.cells}
    values: list[list[Value]] = []
    for layer in analysis.layers:
        found = (known.get((layer.stack, layer.layer, kind)) for kind in kinds)
        values.append([measure(m) if m is not None else None for m in found])
    rows = [layer.name for layer in analysis.layers]
    flat = [
        (value, rows[i], kinds[j])
        for i, row in enumerate(values)
        for j, value in enumerate(row)
        if value is not None
    ]
    reading = "No weight of a layer has it."
    if flat:
        most, least = max(flat), min(flat)
        middle = statistics.median(value for value, _, _ in flat)
        form = ".3f" if signed else ".3g"
        reading = (
            f"Of the weights, {most[2]} in layer {most[1]} has the largest value "
            f"({most[0]:{form}}) and {least[2]} in layer {least[1]} the smallest "
            f"({least[0]:{form}}); the median is {middle:{form}}."
        )
    return Figure(
        name,
        "signs" if signed else "map",
        title,
        svg.heat_map(
            rows, kinds, values, title=title, reading=reading, signed=signed,
            form=".3f" if signed else ".3g",
        ),
        reading,
        ("layer", *kinds),
        tuple(zip(rows, values, strict=True)),
    )  # fmt: skip


def _profile(analysis: "Analysis", number: int) -> Figure:
    """Sizes of Δ and shift by depth."""
    labels = [layer.name for layer in analysis.layers]
    found = [layer.group.of(number) for layer in analysis.layers]
    sizes = [m.relative if m is not None else None for m in found]
    shifts = [m.shift.relative if m is not None and m.shift is not None else None for m in found]
    series: list[tuple[str, list[Value]]] = [("‖Δ‖ / ‖Θ_base‖", sizes)]
    if any(shifts):
        series.append(("‖S‖ / ‖Θ_base‖", shifts))
    known = [(value, label) for value, label in zip(sizes, labels, strict=True) if value]
    reading = "Δ is zero in every layer."
    if known:
        most, least = max(known), min(known)
        times = most[0] / least[0]
        reading = (
            f"Δ is largest in layer {most[1]} ({most[0]:.3g} of base's norm), {times:.2g} times as "
            f"large as in layer {least[1]}, where it is smallest."
        )
    title = "Size by depth"
    rows = _turned(labels, series)
    return Figure(
        "profile",
        "lines",
        title,
        svg.lines(labels, series, title=title, reading=reading),
        reading,
        ("layer", *(name for name, _ in series)),
        rows,
    )


def _heads(analysis: "Analysis", number: int) -> Figure | None:
    """Relative size of Δ in each head of the queries."""
    found = [
        (t, t.heads[number]) for t in analysis.tensors if t.kind == "q" and t.heads.get(number)
    ]
    if len(found) < 2:
        return None
    wide = max(len(heads) for _, heads in found)
    rows = [f"{tensor.layer}" for tensor, _ in found]
    values: list[list[Value]] = []
    for _, heads in found:
        own = [head.relative if math.isfinite(head.relative) else None for head in heads]
        values.append([*own, *[None] * (wide - len(own))])
    flat = [
        (value, rows[i], j) for i, row in enumerate(values) for j, value in enumerate(row) if value
    ]
    if not flat:
        return None
    most, middle = max(flat), statistics.median(value for value, _, _ in flat)
    reading = (
        f"Head {most[2]} of layer {most[1]} changed most ({most[0]:.3g} of its norm), "
        f"{most[0] / middle:.2g} times as much as the median head."
    )
    title = "Relative size by attention head (q)"
    columns = [str(n) for n in range(wide)]
    return Figure(
        "heads",
        "map",
        title,
        svg.heat_map(rows, columns, values, title=title, reading=reading),
        reading,
        ("layer", *columns),
        tuple(zip(rows, values, strict=True)),
    )


def _sizes(analysis: "Analysis", number: int) -> Figure:
    """The distribution of |Δ| over all numbers that changed."""
    counts = analysis.histograms[number]
    found = [n for n, count in enumerate(counts) if count and n]
    title = "Distribution of |Δ|"
    m = analysis.all.of(number)
    if not found or m is None:
        reading = "Δ is zero."
        picture = svg.histogram([1.0, 10.0], [0.0], title=title, reading=reading)
        return Figure("sizes", "bars", title, picture, reading, ("|Δ|", "share"), ())
    total = sum(counts)
    first = next(n for n in found if sum(counts[1 : n + 1]) >= total // 1000)  # the tail is long
    each = max(1, math.ceil((found[-1] + 1 - first) / BARS))
    starts = list(range(first, found[-1] + 1, each))
    shares = [sum(counts[n : n + each]) / total for n in starts]
    edges = [edge(n) for n in (*starts, starts[-1] + each)]
    sizes = dict(m.quantiles)
    reading = (
        f"Half of the numbers changed by less than {sizes[0.5]:.2g}, one in a hundred by more than "
        f"{sizes[0.99]:.2g}; the largest change is {m.largest:.2g}, and {100 * m.unchanged:.2g} % "
        "did not change."
    )
    rows = tuple(
        (f"{a:.3g} to {b:.3g}", (share,))
        for a, b, share in zip(edges, edges[1:], shares, strict=False)
    )
    picture = svg.histogram(edges, shares, title=title, reading=reading)
    return Figure("sizes", "bars", title, picture, reading, ("|Δ|", "share"), rows)


def _spectra(analysis: "Analysis", number: int) -> Figure | None:
    """Energy against rank: the median matrix, the least and the most."""
    found = [s for t in analysis.tensors for s in t.spectra if s.delta == number]
    if not found:
        return None
    series: list[tuple[str, list[Value]]] = []
    ranks = [rank for rank in RANKS if any(rank in dict(s.energy) for s in found)]
    shares = [[dict(s.energy)[rank] for s in found if rank in dict(s.energy)] for rank in ranks]
    choices: tuple[tuple[str, Callable[[Sequence[float]], float]], ...] = (
        ("median matrix", statistics.median), ("most", max), ("least", min),
    )  # fmt: skip
    series = [(name, [choose(values) for values in shares]) for name, choose in choices]
    stable = statistics.median(s.stable_rank for s in found)
    reading = (
        f"In the median of {len(found)} matrices the leading {ranks[-1]} directions hold "
        f"{100 * (series[0][1][-1] or 0):.0f} % of ‖Δ‖²; the stable rank is {stable:.1f}."
    )
    overlaps = [s.overlap for s in found if s.overlap is not None]
    if overlaps:
        common = statistics.median(o.left for o in overlaps)
        chance = statistics.median(o.chance_left for o in overlaps)
        reading += (
            f" The leading directions of Δ and shift share {100 * common:.0f} %, where chance "
            f"gives {100 * chance:.0f} %."
        )
    title = "Energy by rank"
    labels = [str(rank) for rank in ranks]
    picture = svg.lines(
        labels, series, title=title, reading=reading, form=".2f", high=1.0,
        places=[math.log2(rank) for rank in ranks],
    )  # fmt: skip
    rows = _turned(labels, series)
    return Figure(
        "spectra", "lines", title, picture, reading, ("rank", *(name for name, _ in series)), rows
    )


def _turned(
    labels: Sequence[str], series: Sequence[tuple[str, Sequence[Value]]]
) -> tuple[Row, ...]:
    """The rows of a table whose columns are the series."""
    return tuple(
        (label, tuple(values[number] for _, values in series))
        for number, label in enumerate(labels)
    )
