"""What a report adds to an output folder: the page, two pictures, and a section of the card."""

from typing import TYPE_CHECKING

from paramdelta.analysis.report import svg
from paramdelta.analysis.report.figures import Figure, figures
from paramdelta.text import markdown

if TYPE_CHECKING:
    from paramdelta.analysis.analysis import Analysis

PAGE = "paramdelta.report.html"
PICTURES = ("norms", "profile")  # of the first Δ


def output_files(analysis: "Analysis") -> dict[str, bytes]:
    """The page and the pictures, by name. They are the same for each run."""
    files = {PAGE: analysis.to_html().encode()}
    for figure in _pictures(analysis):
        files[f"paramdelta.{figure.name}.svg"] = svg.document(figure.svg).encode()
    return files


def card_section(analysis: "Analysis") -> str:
    """What Δ is like, in Markdown: the verdict, and the pictures with their readings."""
    lines = ["## What Δ is like", ""]
    for paragraph in analysis.verdict.paragraphs:
        lines += [markdown(paragraph), ""]
    for flag in analysis.verdict.flags:
        lines.append(f"- {markdown(flag.severity)}: {markdown(flag.what)}")
    if analysis.verdict.flags:
        lines.append("")
    for figure in _pictures(analysis):
        alt = markdown(f"{figure.title}. {figure.reading}")
        lines += [f"![{alt}](paramdelta.{figure.name}.svg)", ""]
    lines += [f"[{PAGE}]({PAGE}) has all figures and numbers.", ""]
    return "\n".join(lines)


def _pictures(analysis: "Analysis") -> list[Figure]:
    return [figure for figure in figures(analysis, 0) if figure.name in PICTURES]
