"""The page: verdict, figures with their readings and numbers, and a table of all tensors.

Nothing of it comes from elsewhere, and no text of a checkpoint becomes part of a script: names and
tokens are escaped, the script reads the tables, and the page's own policy allows no other script.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from paramdelta.analysis.report.figures import Figure, figures, matrix
from paramdelta.output.pagefile import MARK
from paramdelta.text import shown
from paramdelta.units import show_count
from paramdelta.version import __version__

if TYPE_CHECKING:
    from paramdelta.analysis.analysis import Analysis
    from paramdelta.analysis.measures import DeltaMeasures

MOST = 3000  # tensors that the table lists: those that changed most
LINKED = 2_000_000  # bytes of JSON that the page carries

Value = float | None


def page(
    analyses: Sequence["Analysis"], names: Sequence[str] = (), *, predict: bool = False
) -> str:
    """The page of one analysis, or of several side by side.

    ``names``: of each, where there are several. ``predict``: also the transfer that the study
    expects.
    """
    style, script = _part("page.css"), _part("page.js")
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    title = analyses[0].formula if len(analyses) == 1 else f"{len(analyses)} recipes"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">' + MARK,
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>What Δ is: {_text(title)}</title><style>{style}</style></head><body><main>",
    ]
    if len(analyses) > 1:
        parts += _comparison(analyses, names)
    for number, analysis in enumerate(analyses):
        name = names[number] if len(analyses) > 1 else ""
        parts += _analysis(analysis.public(), f"r{number}", name, predict)
    parts.append(
        f'<p class="dim">Made by paramdelta {_text(__version__)}. S is the shift of the new base, '
        "Θ′_base − Θ_base.</p></main>"
    )
    parts.append(f"<script>{script}</script></body></html>\n")
    return "".join(parts)


def _part(name: str) -> str:
    return files("paramdelta.analysis.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """A part of the page, as a policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(words: object, most: int = 2000) -> str:
    """Any words as HTML: no markup, nothing that moves other text."""
    return escape(shown(str(words), most))


def _words(sentence: str) -> str:
    """A sentence as HTML; what stands in backticks is code."""
    return re.sub("`([^`<>]+)`", r"<code>\1</code>", _text(sentence))


# -- parts of the page -----------------------------------------------------------------------------


def _analysis(analysis: "Analysis", key: str, name: str, predict: bool) -> Iterator[str]:
    many = len(analysis.deltas) > 1
    yield f'<h1 id="{key}">{_text(name or analysis.formula)}</h1>'
    if name:
        yield f'<p class="dim">{_text(analysis.formula)}</p>'
    yield '<p class="dim">'
    if analysis.new_base is not None:
        yield f"new base: {_text(analysis.new_base)}<br>"
    for number, delta in enumerate(analysis.deltas):
        minus = f" − {_text(delta.base)}" if delta.base is not None else ""
        tag = f" {number + 1}" if many else ""
        factor = "by rules" if delta.factor is None else f"{delta.factor:g}"
        yield f"Δ{tag} = {_text(delta.post)}{minus}, scale {_text(factor)}<br>"
    yield f"{show_count(analysis.parameters)} parameters; tensors without Δ: {analysis.left}</p>"
    yield f'<nav><a href="#{key}-verdict">Verdict</a>'
    yield f'<a href="#{key}-figures">Figures</a><a href="#{key}-tensors">Tensors</a>'
    yield _link(analysis, key)
    yield f'</nav><h2 id="{key}-verdict">Verdict</h2>'
    for paragraph in analysis.verdict.paragraphs:
        yield f"<p>{_text(paragraph)}</p>"
    if predict:
        for number, prediction in enumerate(analysis.predictions()):
            tag = f" of Δ {number + 1}" if many else ""
            yield f"<p>Expected transfer{tag}: {_text(prediction)}.</p>"
    yield from _flags(analysis)
    yield f'<h2 id="{key}-figures">Figures</h2>'
    cosines = matrix(analysis)
    if cosines is not None:
        yield f'<div class="figures">{"".join(_figure(cosines))}</div>'
    for number, delta in enumerate(analysis.deltas):
        if many:
            yield f"<h2>Δ {number + 1}: {_text(delta.post)}</h2>"
        yield '<div class="figures">'
        for figure in figures(analysis, number):
            yield from _figure(figure)
        yield "</div>"
        yield from _tokens(analysis, number)
    yield from _tensors(analysis, key)


def _link(analysis: "Analysis", key: str) -> str:
    """A link to all numbers, as a file that the page itself holds."""
    data = json.dumps(analysis.to_dict(), separators=(",", ":")).encode()
    if len(data) > LINKED:
        return ""
    coded = base64.b64encode(data).decode()
    return f'<a download="analysis-{key}.json" href="data:application/json;base64,{coded}">JSON</a>'


def _flags(analysis: "Analysis") -> Iterator[str]:
    told = [
        (flag.severity, flag.code, flag.what, flag.remedy, flag.where,
         f"Threshold {flag.threshold:g}: {flag.source}.")
        for flag in analysis.verdict.flags
    ]  # fmt: skip
    told += [
        (f.severity.value, f.code, f"{f.what} (in {f.where})", f.remedy or "", f.tensors, "")
        for f in analysis.findings
        if f.severity.value != "note"
    ]
    if not told:
        yield "<p>No flags.</p>"
        return
    yield '<ul class="flags">'
    for severity, code, what, remedy, where, source in told:
        yield f'<li class="{_text("note" if severity == "note" else "warning")}">'
        yield f"<h3>{_text(severity)}: {_text(code)}</h3><p>{_words(what)}.</p>"
        if where:
            more = f" and {len(where) - 8} more" if len(where) > 8 else ""
            yield f'<p class="dim">In {_text(", ".join(shown(w, 60) for w in where[:8]))}{more}</p>'
        if remedy:
            yield f"<p>{_words(remedy)}.</p>"
        if source:
            yield f'<p class="dim">{_text(source)}</p>'
        yield "</li>"
    yield "</ul>"


def _figure(figure: Figure) -> Iterator[str]:
    yield f'<figure class="{figure.name}"><h3>{_text(figure.title)}</h3>{figure.svg}'
    yield f"<figcaption>{_text(figure.reading)}</figcaption>"
    yield '<details><summary>Numbers</summary><div class="scroll" tabindex="0"><table><thead><tr>'
    for name in figure.head:
        yield f'<th scope="col">{_text(name)}</th>'
    yield "</tr></thead><tbody>"
    for name, values in figure.rows:
        yield f'<tr><th scope="row">{_text(name)}</th>'
        yield "".join(f"<td>{_number(value)}</td>" for value in values)
        yield "</tr>"
    yield "</tbody></table></div></details></figure>"


def _tokens(analysis: "Analysis", number: int) -> Iterator[str]:
    """The rows of embeddings that changed most."""
    for tensor in analysis.tensors:
        rows = tensor.rows.get(number, ())
        if not rows:
            continue
        yield "<details><summary>Rows of tokens that changed most in "
        yield f'{_text(tensor.name)}</summary><div class="scroll" tabindex="0"><table><thead><tr>'
        yield '<th scope="col">token</th><th scope="col">row</th><th scope="col">‖Δ‖</th>'
        yield '<th scope="col">‖Δ‖ / ‖Θ_base‖</th><th scope="col">× median row</th></tr></thead>'
        yield "<tbody>"
        for row in rows:
            token = repr(row.token) if row.token is not None else "not known"
            times = row.norm / row.median if row.median else None
            yield f'<tr><th scope="row">{_text(token, 60)}</th><td>{row.row}</td>'
            yield f"<td>{_number(row.norm)}</td><td>{_number(row.relative)}</td>"
            yield f"<td>{_number(times)}</td></tr>"
        yield "</tbody></table></div></details>"


_COLUMNS = (
    "tensor", "kind", "layer", "elements", "‖Δ‖ / ‖Θ_base‖", "‖Δ‖", "largest |Δ|", "median |Δ|",
    "unchanged", "rounded away", "kurtosis", "‖S‖ / ‖Δ‖", "cosine Δ, S", "same sign",
)  # fmt: skip


def _tensors(analysis: "Analysis", key: str) -> Iterator[str]:
    """The table of all tensors, a row for each Δ."""
    found = [(t, m) for t in analysis.tensors for m in t.group.deltas]
    many = len(analysis.deltas) > 1
    kept = {id(m) for _, m in sorted(found, key=lambda each: -(each[1].relative or 0.0))[:MOST]}
    yield f'<h2 id="{key}-tensors">Tensors</h2>'
    if len(found) > MOST:
        yield f"<p>The {MOST} that changed most, of {len(found)}; the JSON has all.</p>"
    yield f'<p><label>Search <input type="search" data-table="{key}-table" '
    yield f'data-count="{key}-count" placeholder="mlp 12"></label> '
    yield f'<output id="{key}-count" aria-live="polite"></output></p>'
    yield f'<div class="scroll" tabindex="0"><table class="sorted" id="{key}-table"><thead><tr>'
    for name in _COLUMNS:
        yield f'<th scope="col">{_text(name)}</th>'
    yield "</tr></thead><tbody>"
    for tensor, m in found:
        if id(m) not in kept:
            continue
        tag = f"Δ {m.delta + 1}: " if many else ""
        shift = m.shift
        yield f'<tr><th scope="row">{tag}{_text(tensor.name, 200)}</th>'
        yield f"<td>{_text(tensor.kind)}</td>"
        yield _cell(tensor.layer, "d") + _cell(m.elements, "d")
        yield _cell(m.relative) + _cell(m.norm) + _cell(m.largest)
        yield _cell(dict(m.quantiles).get(0.5)) + _cell(m.unchanged) + _cell(m.rounded_away)
        yield _cell(m.kurtosis) + _cell(shift.ratio if shift else None)
        yield _cell(shift.cosine if shift else None, ".3f")
        yield _cell(shift.agreement if shift else None) + "</tr>"
    yield "</tbody></table></div>"


def _comparison(analyses: Sequence["Analysis"], names: Sequence[str]) -> Iterator[str]:
    """The recipes side by side."""
    yield "<h1>Recipes side by side</h1><nav>"
    for number, name in enumerate(names):
        yield f'<a href="#r{number}">{_text(name)}</a>'
    yield '</nav><div class="scroll" tabindex="0"><table class="sorted"><thead><tr>'
    for head in ("Δ", *_COLUMNS[4:]):
        yield f'<th scope="col">{_text(head)}</th>'
    yield '<th scope="col">flags</th></tr></thead><tbody>'
    for name, analysis in zip(names, analyses, strict=True):
        for m in analysis.all.deltas:
            tag = f", Δ {m.delta + 1}" if len(analysis.deltas) > 1 else ""
            yield f'<tr><th scope="row">{_text(name)}{tag}</th>{"".join(_compared(m))}'
            codes = [f.code for f in analysis.verdict.flags if f.delta in (None, m.delta)]
            yield f"<td>{_text(', '.join(codes) or 'none')}</td></tr>"
    yield "</tbody></table></div>"


def _compared(m: "DeltaMeasures") -> Iterator[str]:
    shift = m.shift
    values = (m.relative, m.norm, m.largest, dict(m.quantiles).get(0.5), m.unchanged)
    beside = (shift.ratio, shift.cosine, shift.agreement) if shift else (None, None, None)
    yield from map(_cell, (*values, m.rounded_away, m.kurtosis, *beside))


def _cell(value: Value, form: str = ".4g") -> str:
    if value is None:
        return "<td>–</td>"
    return f'<td data-value="{value!r}">{_number(value, form)}</td>'


def _number(value: Value, form: str = ".4g") -> str:
    return "–" if value is None else f"{value:{form}}"
