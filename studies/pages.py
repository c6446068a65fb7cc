"""Pages made from a template and results: every number in them is computed.

In a template `{{name}}` stands for a value and `{{table: name}}` for a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_MARK = re.compile(r"\{\{(table: )?([^{}]+)\}\}")
_NO_TEXT = (
    r"\{\{[^{}]*\}\}",  # marks
    r"\]\([^)]*\)",  # the targets of links
    r"`[^`]*`",  # code
    r"(?m)^## \d\. ",  # numbers of headings
    r"section \d",
)


def render(template: str, values: Callable[[str], str], tables: Callable[[str], str]) -> str:
    """The template with every mark replaced. An unknown name raises what the callables raise."""

    def made(mark: re.Match[str]) -> str:
        return tables(mark[2]).rstrip("\n") if mark[1] else values(mark[2])

    return _MARK.sub(made, template)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def typed_numbers(template: str, allowed: Sequence[str]) -> list[str]:
    """Words with digits that stand in the template itself, other than the allowed phrases."""
    for pattern in _NO_TEXT:
        template = re.sub(pattern, "", template)
    for phrase in allowed:
        template = template.replace(phrase, "")
    return re.findall(r"\S*\d\S*", template)
