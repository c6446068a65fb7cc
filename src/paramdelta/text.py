r"""Foreign text: names and values from files, made safe to print.

Whoever writes a file chooses its tensor names, token texts and metadata. Printed as they are, they
can move the cursor, change colors, reverse the reading order or add lines to a message, and in a
model card they can add HTML. Every such text goes through one of these functions before it is
printed, put in an error or written to Markdown:

>>> shown("a\x1b[2Jb")
'a\\x1b[2Jb'
>>> code("a|b")
'`a\\|b`'

A character is safe if `str.isprintable` says so. That excludes control characters, format
characters (bidirectional overrides, zero-width characters), lone surrogates and line separators.
"""

import re

SHOWN = 120  # characters of a name that are shown; real tensor names have under 100
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_HARMLESS = "\t\u200c\u200d\ufe0f"
_PARTS = re.compile(f"([{_HARMLESS}])")
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>|~$#!@&]|(?<=:)//|(?<=www)\.|^[-+=>]|^\d+(?=[.)])")


def shown(text: str, most: int = SHOWN) -> str:
    """One line of at most ``most`` characters: unsafe ones as escapes, a long text cut with "…"."""
    if len(text) <= most and text.isprintable():
        return text
    parts, room = [], most - 1  # one for the ellipsis
    for number, character in enumerate(text):
        part = character if character.isprintable() else _escaped(character)
        if len(part) > room:
            # The last character may take the place of the ellipsis.
            last = number == len(text) - 1 and len(part) <= room + 1
            parts.append(part if last else "…")
            break
        room -= len(part)
        parts.append(part)
    return "".join(parts)


def line(text: str) -> str:
    """The whole text as one line, with every unsafe character as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def printable(text: str) -> str:
    """The whole text, lines kept, with every other unsafe character as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else _escaped(c) for c in text)


def spoken(text: str) -> str:
    """What a model says: as `printable`, but with tabs, and the joiners of scripts and emoji."""
    return "".join(
        part if part and part in _HARMLESS else printable(part) for part in _PARTS.split(text)
    )


def markdown(text: str, most: int = 10 * SHOWN) -> str:
    """Plain words in Markdown, in a paragraph or a table cell: no markup, HTML, link or mention."""
    return _MARKDOWN.sub(_quoted, shown(text.strip(), most))


def code(text: str, most: int = SHOWN) -> str:
    """A code span in Markdown, in a paragraph or a table cell. An empty text stays empty."""
    line = shown(text, most)
    if not line.strip():
        return ""
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if line.startswith(("`", " ")) or line.endswith(("`", " ")) else ""
    return fence + pad + line.replace("|", "\\|") + pad + fence


def block(text: str, language: str = "") -> str:
    """A code block in Markdown. Lines are kept; the fence is longer than any run of backticks."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{printable(text)}\n{fence}"


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _quoted(match: "re.Match[str]") -> str:
    """A piece of Markdown's syntax, as text."""
    found = match[0]
    if found in "<>&":
        return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}[found]
    if found == "//":
        return "\\/\\/"
    return found + "\\" if found.isdigit() else "\\" + found
