"""YAML of plain values, within limits. Kept apart, so that the start does not import the parser."""

import contextlib
from collections.abc import Iterator
from typing import Any

import yaml

from paramdelta.documents.json import DocumentError

MAX_YAML = 200_000  # characters; the parser takes about 10 µs for each
_MAX_NODES = 20_000  # of a document, with aliases followed
_MAX_DEPTH = 50
_MAX_DIGITS = 40


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
        if self.depth > _MAX_DEPTH:
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
