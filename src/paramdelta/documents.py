"""JSON and YAML from files, parsed only if what they make fits in memory.

A parser builds whatever the text asks for: nine megabytes of ``[],[],…`` become 250 MB of lists,
and one kilobyte of YAML aliases takes a minute. So JSON is counted before it is parsed, and YAML is
read without aliases, tags and dates, and only as much of it as configs and cards have.
"""

import json
from typing import Any

import yaml

MAX_YAML = 200_000  # bytes; the parser takes about 10 µs for each
_MAX_NODES = 20_000  # of a YAML document
_MAX_DEPTH = 50
_MAX_DIGITS = 40
_FREE = 64_000_000  # bytes that any JSON document may take, and 8 for each of its own
# Bytes that each of these characters stands for at the most, in objects: a dict, a list, half a
# string, an entry, a value.
_BYTES = {b"{": 220, b"[": 90, b'"': 30, b":": 60, b",": 32}


def parse_json(data: bytes) -> Any:
    """A JSON document.

    Raises:
        ValueError: not JSON, nested too deeply, or more objects than a document of its size has.
    """
    memory = sum(size * data.count(character) for character, size in _BYTES.items())
    if memory > _FREE + 8 * len(data):
        raise ValueError(f"too many objects for {len(data)} bytes")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """A YAML document of plain values: no aliases, no tags; dates are text.

    Raises:
        ValueError: not YAML, too large, nested too deeply, or in need of what is left out.
    """
    if len(text) > MAX_YAML:
        raise ValueError(f"{len(text)} characters; at most {MAX_YAML} are read")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader, and more
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        what = ": ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(what + (f", line {mark.line + 1}" if mark is not None else "")) from None
    except yaml.YAMLError:
        raise ValueError("a character that YAML does not allow") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """The safe loader, with limits."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node; raises ValueError."""
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases are not read")
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if event.tag not in (None, "!"):
            raise ValueError("tags are not read")
        self.depth += 1
        self.nodes += 1
        if self.depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if self.nodes > _MAX_NODES:
            raise ValueError(f"more than {_MAX_NODES} values")
        node: Any = super().compose_node(parent, index)
        if node.tag.endswith((":int", ":float")) and len(node.value) > _MAX_DIGITS:
            raise ValueError(f"a number of {len(node.value)} digits")
        self.depth -= 1
        return node


# Dates are not needed, and 2024-02-30 is one that cannot be made.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
