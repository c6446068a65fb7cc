"""JSON and YAML from files, parsed only if what they make fits in memory.

Only this module calls the parsers; the headers of safetensors files have a parser of their own.

A parser builds whatever the text asks for: nine megabytes of ``[],[],…`` become 250 MB of lists,
and one kilobyte of YAML aliases takes a minute. So JSON is measured before it is parsed, and YAML
is read without tags and dates, with aliases only where people use them, and only as much of it as
recipes and model cards have. The caller limits the size of the file that it reads.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import yaml

MAX_YAML = 200_000  # bytes; the parser takes about 10 µs for each
_MAX_NODES = 20_000  # of a YAML document, with aliases followed
_MAX_DEPTH = {"json": 100, "yaml": 50}  # levels; a tokenizer has eight
_MAX_DIGITS = 40
_FREE = 72_000_000  # bytes that any JSON document may take, and 8 for each of its own
# The most bytes of objects that each of these characters can cause: a dict, a list, half a
# string, an entry (also as a pair, while its dict is made), a value.
_BYTES = {b"{": 220, b"[": 90, b'"': 30, b":": 132, b",": 32}
_NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))


class DocumentError(ValueError):
    """A document that is not read. ``line``: where in a YAML document, from 1; None if unknown."""

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what)
        self.line = line

    def __str__(self) -> str:
        what = str(self.args[0])
        return what if self.line is None else f"{what}, line {self.line}"


def parse_json(data: bytes) -> Any:
    """A JSON document in UTF-8.

    As Python's own parser, this reads NaN and Infinity, which configs of Mamba models have, and
    escaped lone surrogates, which vocabularies have. A key may stand twice only with one value:
    loaders differ in which of two values they take.

    Raises:
        ValueError: not JSON, nested too deeply, a number with more digits than Python reads, a key
            with two values, or more objects than a document of its size has.
    """
    memory = sum(size * data.count(character) for character, size in _BYTES.items())
    if memory > _FREE + 8 * len(data):
        raise DocumentError(f"too many objects for {len(data)} bytes")
    if _is_deep(data):
        raise DocumentError("nested too deeply")
    text = data.decode("utf-8", errors="surrogatepass").removeprefix("\ufeff")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise DocumentError("nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """A YAML document of plain values: no aliases, no tags; dates are text.

    Raises:
        ValueError: not YAML, too large, nested too deeply, or in need of what is left out.
    """
    with _loader(text, aliases=False) as loader:
        return loader.get_single_data()


def compose_yaml(text: str) -> Any:
    """The nodes of a YAML document, which know their lines; None if it is empty.

    Aliases are followed; tags are not read, and dates are text.

    Raises:
        DocumentError: as `parse_yaml`.
    """
    with _loader(text, aliases=True) as loader:
        return loader.get_single_node()


def construct_yaml(node: Any) -> Any:
    """The plain values of a node of `compose_yaml`; raises DocumentError."""
    with _loader("", aliases=True) as loader:
        return loader.construct_document(node)


def to_yaml(value: Any) -> str:
    """Plain values as a YAML document of printable characters only."""
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    if text.replace("\n", "").isprintable():
        return text
    return yaml.safe_dump(value, sort_keys=False, width=100)


def to_json(value: Any) -> str:
    """Plain values as an indented JSON document, with lone surrogates as escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", errors="backslashreplace").decode()


def _is_deep(data: bytes) -> bool:
    """Whether brackets outside of strings are nested more deeply than `_MAX_DEPTH`."""
    marks = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_MARKS)
    # Without pairs of quotes, the same brackets are inside of strings as before.
    marks = b"".join(marks.replace(b'""', b"").split(b'"')[::2])
    for _ in range(_MAX_DEPTH["json"]):
        left = marks.replace(b"[]", b"").replace(b"{}", b"")
        if len(left) == len(marks):
            break  # nothing is left, or it is not JSON
        marks = left
    else:
        return bool(marks)
    return marks.count(b"[") + marks.count(b"{") > _MAX_DEPTH["json"]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            # repr: NaN does not equal itself, and 1 equals true
            if found[key] is not value and repr(found[key]) != repr(value):
                raise DocumentError(f"the key {key!r} stands twice, with different values")
    return found


@contextlib.contextmanager
def _loader(text: str, *, aliases: bool) -> "Iterator[_Loader]":
    """A loader for a text; its errors become those of this module."""
    if len(text) > MAX_YAML:
        raise DocumentError(f"{len(text)} characters; at most {MAX_YAML} are read")
    try:
        yield _Loader(text, aliases)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        what = ": ".join(part for part in (error.context, error.problem) if part)
        raise DocumentError(what, None if mark is None else mark.line + 1) from None
    except yaml.YAMLError:
        raise DocumentError("a character that YAML does not allow") from None
    except RecursionError:
        raise DocumentError("nested too deeply") from None
    except OverflowError as error:
        raise DocumentError(str(error)) from None


class _Loader(yaml.SafeLoader):
    """The safe loader, with limits. ``aliases``: whether they are followed."""

    def __init__(self, text: str, aliases: bool) -> None:
        super().__init__(text)
        self.aliases = aliases
        self.depth = 0
        self.nodes = 0
        self.sizes: dict[int, int] = {}  # nodes in each node that is complete

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node; raises ValueError."""
        if self.check_event(yaml.AliasEvent):
            return self._aliased(super().compose_node(parent, index))
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if event.tag not in (None, "!"):
            raise DocumentError("tags are not read", line)
        self.depth += 1
        before = self.nodes
        self._count(1, line)
        if self.depth > _MAX_DEPTH["yaml"]:
            raise DocumentError("nested too deeply", line)
        node: Any = super().compose_node(parent, index)
        if node.tag.endswith((":int", ":float")) and len(node.value) > _MAX_DIGITS:
            raise DocumentError(f"a number of {len(node.value)} digits", line)
        self.depth -= 1
        self.sizes[id(node)] = self.nodes - before
        return node

    def _aliased(self, node: Any) -> Any:
        line = node.start_mark.line + 1
        if not self.aliases:
            raise DocumentError("aliases are not read", line)
        if id(node) not in self.sizes:
            raise DocumentError("an alias inside of its own value", line)
        self._count(self.sizes[id(node)], line)
        return node

    def _count(self, more: int, line: int) -> None:
        self.nodes += more
        if self.nodes > _MAX_NODES:
            raise DocumentError(f"more than {_MAX_NODES} values", line)


# Dates are not needed, and 2024-02-30 is one that cannot be made.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
