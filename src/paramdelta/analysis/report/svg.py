"""Figures as SVG: text that a page, a model card or a browser shows as it is.

Each is `WIDE` units wide, so that its letters can be read on a phone. Colors are safe for the
color-blind: cividis for sizes (Nuñez, Anderton and Renslow, 2018), blue and orange for signs. Words
take the color of the text around them.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

from paramdelta.text import shown

WIDE = 360
LETTER = 9  # size of the letters
CIVIDIS = (
    "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369",
    "#e1cc55", "#fee838",
)  # fmt: skip
SIGNS = ("#0b4f8a", "#5a9bd0", "#c3dcf0", "#f5f5f5", "#fbd5a6", "#ec9640", "#a34700")
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito (2008)
DASHES = ("", "6 3", "2 3", "8 3 2 3")
NOTHING = "#8886"
NEUTRAL = 0.1  # below this no sign has a strong color

Value = float | None


def document(svg: str) -> str:
    """A figure as a file of its own, on white."""
    return svg.replace(
        "<svg ",
        '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" color="#222" '
        'style="background:#fff" ',
        1,
    )


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[Value]],
    *,
    title: str,
    reading: str,
    signed: bool = False,
    form: str = ".3g",
    written: bool = False,
) -> str:
    """A cell for each row and column. ``signed``: colors for both signs, and 0 in the middle.

    ``written``: the numbers stand in the cells. Names of columns are turned where they are long.
    """
    found = [value for row in values for value in row if value is not None]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if signed:
        high = max(abs(low), abs(high), NEUTRAL)
        low = -high
    span = (high - low) or 1.0
    colors = SIGNS if signed else CIVIDIS
    left = min(110, 8 + int(0.56 * LETTER * max((len(shown(r, 20)) for r in rows), default=0)))
    each = (WIDE - left - 2) / max(1, len(columns))
    longest = max((len(shown(name, 12)) for name in columns), default=0)
    top = 44 if each < 5 * longest else 18
    height = max(4.0, min(24.0 if written else 15.0, 420 / max(1, len(rows))))
    step = max(1, math.ceil((LETTER + 1) / height))
    parts = []
    for number, name in enumerate(columns):
        x = left + (number + 0.5) * each
        parts.append(_text(x, top - 5, shown(name, 12), turned=-35 if top > 18 else 0))
    for number, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = top + number * height
        if number % step == 0:
            parts.append(_text(left - 4, y + height / 2 + 3, shown(name, 20), anchor="end"))
        for at, value in enumerate(row):
            share = None if value is None else (value - low) / span
            fill = NOTHING if share is None else _color(colors, share)
            told = "–" if value is None else f"{value:{form}}"
            parts.append(
                f'<rect x="{left + at * each:.1f}" y="{y:.1f}" width="{each - 0.5:.1f}" '
                f'height="{height - 0.4:.1f}" fill="{fill}"><title>{_safe(name)}, '
                f"{_safe(columns[at])}: {told}</title></rect>"
            )
            if written and share is not None:
                ink = "#111" if _is_light(fill) else "#fff"
                x = left + (at + 0.5) * each
                parts.append(_text(x, y + height / 2 + 3, told, fill=ink))
    bottom = top + len(rows) * height + 8
    parts += _legend(colors, low, high, form, bottom)
    return _svg(bottom + 24, title, reading, parts)


def lines(
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[Value]]],
    *,
    title: str,
    reading: str,
    form: str = ".3g",
    places: Sequence[float] | None = None,
    high: float | None = None,
) -> str:
    """A line for each series, from zero. ``places``: of the labels on the axis; evenly if None."""
    found = [value for _, values in series for value in values if value is not None]
    most = high if high is not None else (max(found, default=0.0) or 1.0)
    left, right, top, bottom = 44.0, WIDE - 8.0, 22.0, 170.0
    at = places or [float(n) for n in range(len(labels))]
    span = (at[-1] - at[0]) or 1.0

    def x(number: int) -> float:
        return left + (right - left) * (at[number] - at[0]) / span

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / most

    parts = _axis(left, right, y, most, form)
    step = max(1, math.ceil(len(labels) / 10))
    parts += [_text(x(n), bottom + 13, shown(labels[n], 14)) for n in range(0, len(labels), step)]
    for number, (name, values) in enumerate(series):
        color, dashes = SERIES[number % 4], DASHES[number % 4]
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        for run in _runs(values):
            points = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in run)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"{dash}/>'
            )
            parts += [
                f'<circle cx="{x(n):.1f}" cy="{y(v):.1f}" r="2.2" fill="{color}"><title>'
                f"{_safe(name)}, {_safe(labels[n])}: {v:{form}}</title></circle>"
                for n, v in run
            ]
        place = left + number * (right - left) / max(1, len(series))
        parts.append(
            f'<line x1="{place:.1f}" x2="{place + 18:.1f}" y1="8" y2="8" stroke="{color}" '
            f'stroke-width="2"{dash}/>' + _text(place + 22, 11, shown(name, 26), anchor="start")
        )
    return _svg(bottom + 22, title, reading, parts)


def histogram(edges: Sequence[float], shares: Sequence[float], *, title: str, reading: str) -> str:
    """Bars between edges on a logarithmic axis."""
    left, right, top, bottom = 44.0, WIDE - 8.0, 10.0, 150.0
    low, high = math.log10(edges[0]), math.log10(edges[-1])
    most = max(shares, default=0.0) or 1.0

    def x(value: float) -> float:
        return left + (right - left) * (math.log10(value) - low) / ((high - low) or 1.0)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / most

    parts = _axis(left, right, y, 100 * most, ".2g", 100.0, " %")
    for begin, end, share in zip(edges, edges[1:], shares, strict=False):
        wide = max(0.5, x(end) - x(begin))
        parts.append(
            f'<rect x="{x(begin):.1f}" y="{y(share):.1f}" width="{wide:.1f}" '
            f'height="{bottom - y(share):.1f}" fill="{SERIES[0]}"><title>{begin:.2g} to '
            f"{end:.2g}: {100 * share:.2f} %</title></rect>"
        )
    step = max(1, math.ceil((math.floor(high) - math.ceil(low) + 1) / 8))
    for power in range(math.ceil(low), math.floor(high) + 1, step):
        parts.append(_text(x(10.0**power), bottom + 13, f"1e{power}"))
    return _svg(bottom + 20, title, reading, parts)


def _svg(height: float, title: str, reading: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDE} {height:.0f}" role="img" font-size="{LETTER}">'
        f"<title>{_safe(title)}</title><desc>{_safe(reading)}</desc>{''.join(parts)}</svg>"
    )


def _axis(
    left: float,
    right: float,
    y: Callable[[float], float],
    most: float,
    form: str,
    unit: float = 1.0,
    suffix: str = "",
) -> list[str]:
    """Four lines across, with their values."""
    parts = []
    for quarter in (0, 0.25, 0.5, 0.75, 1):
        value = quarter * most
        at = y(value / unit)
        parts.append(
            f'<line x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="currentColor" '
            'stroke-opacity="0.2"/>' + _text(left - 4, at + 3, f"{value:{form}}{suffix}", "end")
        )
    return parts


def _runs(values: Sequence[Value]) -> list[list[tuple[int, float]]]:
    """Values between gaps, with their numbers."""
    runs: list[list[tuple[int, float]]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((number, value))
    return [run for run in runs if run]


def _legend(colors: Sequence[str], low: float, high: float, form: str, y: float) -> list[str]:
    """The colors from the least to the most."""
    left, each = 90.0, 180.0 / 24
    parts = [
        f'<rect x="{left + n * each:.1f}" y="{y:.1f}" width="{each + 0.3:.1f}" height="8" '
        f'fill="{_color(colors, n / 23)}"/>'
        for n in range(24)
    ]
    return [
        _text(left - 4, y + 8, f"{low:{form}}", "end"),
        *parts,
        _text(left + 184, y + 8, f"{high:{form}}", "start"),
    ]


def _text(
    x: float,
    y: float,
    words: str,
    anchor: str = "middle",
    fill: str = "currentColor",
    turned: int = 0,
) -> str:
    start = "start" if turned else anchor
    turn = f' transform="rotate({turned} {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{start}" fill="{fill}"{turn}>'
        f"{escape(words)}</text>"
    )


def _safe(words: str) -> str:
    return escape(shown(words))


def _color(colors: Sequence[str], share: float) -> str:
    """Between the colors, by straight lines."""
    place = max(0.0, min(1.0, share)) * (len(colors) - 1)
    at = min(int(place), len(colors) - 2)
    one, two = (_channels(colors[n]) for n in (at, at + 1))
    mixed = (round(a + (b - a) * (place - at)) for a, b in zip(one, two, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _channels(color: str) -> tuple[int, ...]:
    return tuple(int(color[n : n + 2], 16) for n in (1, 3, 5))


def _is_light(color: str) -> bool:
    red, green, blue = _channels(color)
    return 0.3 * red + 0.59 * green + 0.11 * blue > 140
