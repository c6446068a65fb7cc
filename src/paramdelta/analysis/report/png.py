"""The figures as PNG, drawn by matplotlib, for papers and slides. Only this module imports it."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramdelta.analysis.report.figures import Figure, figures, matrix
from paramdelta.analysis.report.svg import DASHES, SERIES
from paramdelta.errors import UsageError
from paramdelta.text import shown

if TYPE_CHECKING:
    from paramdelta.analysis.analysis import Analysis

RESOLUTION = 200  # dots per inch


def write_png(analysis: "Analysis", folder: Path) -> tuple[Path, ...]:
    """Write every figure into a folder, which is made; raises UsageError without matplotlib."""
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise UsageError(
            "PNG files need matplotlib, which is not installed",
            code="missing-package",
            expected="the package matplotlib",
            remedy="pip install matplotlib; or use the SVG figures of the report",
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for stem, figure in _all(analysis.public()):
        canvas = Canvas(figsize=(6, 4), layout="constrained")
        _draw(figure, canvas.add_subplot(), canvas)
        path = folder / f"{stem}.png"
        canvas.savefig(path, dpi=RESOLUTION)
        written.append(path)
    return tuple(written)


def _all(analysis: "Analysis") -> Iterator[tuple[str, Figure]]:
    cosines = matrix(analysis)
    if cosines is not None:
        yield cosines.name, cosines
    for number in range(len(analysis.deltas)):
        tag = f"-{number + 1}" if len(analysis.deltas) > 1 else ""
        for figure in figures(analysis, number):
            yield f"{figure.name}{tag}", figure


def _draw(figure: Figure, axes: Any, canvas: Any) -> None:
    names = [_text(name) for name, _ in figure.rows]
    columns = [_text(name) for name in figure.head[1:]]
    values = [[math.nan if v is None else v for v in row] for _, row in figure.rows]
    if figure.form in ("map", "signs"):
        most = max((abs(v) for row in values for v in row if not math.isnan(v)), default=1.0)
        limits = {"vmin": -most, "vmax": most} if figure.form == "signs" else {}
        colors = "PuOr_r" if figure.form == "signs" else "cividis"
        image = axes.imshow(values, aspect="auto", cmap=colors, **limits)
        canvas.colorbar(image, ax=axes)
        axes.set_xticks(range(len(columns)), columns)
        step = max(1, len(names) // 20)
        axes.set_yticks(range(0, len(names), step), names[::step])
    elif figure.form == "lines":
        for number, column in enumerate(columns):
            dashes = tuple(map(int, DASHES[number % 4].split())) or (1, 0)
            line = [row[number] for row in values]
            axes.plot(line, color=SERIES[number % 4], dashes=dashes, marker=".", label=column)
        step = max(1, len(names) // 12)
        axes.set_xticks(range(0, len(names), step), names[::step])
        axes.set_xlabel(figure.head[0])
        axes.set_ylim(bottom=0)
        axes.legend()
    else:
        axes.bar(range(len(names)), [row[0] for row in values], width=1.0, color=SERIES[0])
        step = max(1, len(names) // 6)
        axes.set_xticks(range(0, len(names), step), [n.split(" ")[0] for n in names[::step]])
        axes.set_xlabel(_text(figure.head[0]))
    axes.set_title(_text(figure.title))


def _text(words: str) -> str:
    """Words without unsafe characters and without matplotlib's mathematics."""
    return shown(words, 40).replace("$", r"\$")
