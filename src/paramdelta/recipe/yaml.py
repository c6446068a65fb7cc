"""YAML documents whose values know their lines, and plain Python values in the same form."""

import math
import numbers
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from paramdelta.errors import StorageError, UsageError, did_you_mean
from paramdelta.storage.local import File
from paramdelta.storage.location import nearest_path
from paramdelta.text import shown
from paramdelta.units import show_size

MOST = 1_000_000  # bytes of a file; a recipe has some hundred
STDIN = Path("-")
Made = TypeVar("Made")


class Node(ABC):
    """One value of a document: a text, a list or a mapping.

    Every reading method raises UsageError with the place of the value.
    """

    @property
    @abstractmethod
    def scalar(self) -> str | None:
        """The text of a scalar; None if it is not one."""

    @property
    @abstractmethod
    def items(self) -> "list[Node] | None":
        """The values of a list; None if it is not one."""

    @property
    @abstractmethod
    def pairs(self) -> "list[tuple[Node, Node]] | None":
        """The keys and values of a mapping; None if it is not one."""

    @property
    def where(self) -> str | None:
        """File and line; None if the value is not from a file."""
        return None

    def beside(self, address: str) -> str:
        """An address, or the path of that name beside the document if there is one."""
        return address

    def text(self) -> str:
        """The text of a scalar that is not empty."""
        if not self.scalar:
            raise self.error("expected one value", code="invalid-recipe-value")
        return self.scalar

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts of a list."""
        if self.items is None:
            raise self.error(f"{name} is not a list", "[one, another]", code="invalid-recipe-value")
        return tuple(item.text() for item in self.items)

    def number(self, what: str, expected: str, kind: Callable[[str], float] = float) -> float:
        """A finite number. ``what``: what it is, for messages; ``kind``: float or int."""
        text = self.text()
        try:
            number = kind(text)
        except ValueError:
            raise self.error(
                f"{what} is not a number", expected, text, code="invalid-recipe-value"
            ) from None
        if not math.isfinite(number):
            raise self.error(
                f"{what} {text} is not a finite number", expected, code="invalid-recipe-value"
            )
        return number

    def flag(self, name: str) -> bool:
        """``true`` or ``false``."""
        text = self.text()
        if text not in ("true", "false"):
            raise self.error(
                f"{name} is neither true nor false", code="invalid-recipe-value", got=text
            )
        return text == "true"

    def fields(self, known: Iterable[str], what: str) -> "dict[str, Node]":
        """The values of a mapping by key. ``known``: all valid keys; ``what``: for messages."""
        known = list(known)
        if self.pairs is None:
            raise self.error(
                f"{what} is a mapping", "keys " + ", ".join(known), code="invalid-recipe-value"
            )
        found: dict[str, Node] = {}
        for key, value in self.pairs:
            name = str(key.scalar)
            if name not in known:
                raise key.error(
                    f"unknown key {name!r} in {what}",
                    "one of " + ", ".join(known),
                    code="unknown-recipe-key",
                    remedy=did_you_mean(name, known),
                )
            if name in found:
                raise key.error(f"key {name!r} stands twice", code="duplicate-recipe-key")
            found[name] = value
        return found

    def required(self, fields: "Mapping[str, Node]", key: str) -> "Node":
        """One of this mapping's ``fields``, which must be there."""
        if key not in fields:
            raise self.error(f"{key} is missing", code="missing-recipe-key")
        return fields[key]

    def valid(self, make: Callable[[], Made]) -> Made:
        """The result of ``make``; an error in it gets the place of this value."""
        try:
            return make()
        except UsageError as error:
            raise self.error(
                error.what, error.expected, error.got, error.remedy, code=error.code
            ) from None

    def error(
        self,
        what: str,
        expected: str | None = None,
        got: str | None = None,
        remedy: str | None = None,
        *,
        code: str,
    ) -> UsageError:
        """An error about this value."""
        return UsageError(
            what, code=code, where=self.where, expected=expected, got=got, remedy=remedy
        )


class YamlNode(Node):
    """A value of a YAML file."""

    def __init__(self, node: Any, path: Path) -> None:
        self._node, self._path = node, path

    @property
    def scalar(self) -> str | None:
        """See `Node.scalar`. Numbers and the like are the text that the file has."""
        return str(self._node.value) if self._node.id == "scalar" else None

    @property
    def items(self) -> list[Node] | None:
        """See `Node.items`."""
        if self._node.id != "sequence":
            return None
        return [YamlNode(item, self._path) for item in self._node.value]

    @property
    def pairs(self) -> list[tuple[Node, Node]] | None:
        """See `Node.pairs`."""
        if self._node.id != "mapping":
            return None
        return [(YamlNode(k, self._path), YamlNode(v, self._path)) for k, v in self._node.value]

    @property
    def where(self) -> str:
        """See `Node.where`."""
        return f"{place(self._path)}, line {self._node.start_mark.line + 1}"

    def beside(self, address: str) -> str:
        """See `Node.beside`."""
        path = self._path.parent / address
        file = str(path).rpartition("#")[0]  # a branch of a file may follow
        there = os.path.exists(path) or (file and os.path.exists(file))  # noqa: PTH110 - any text
        return str(path) if there else address


class PlainNode(Node):
    """A value of Python: a number, a text, a sequence or a mapping."""

    def __init__(self, value: Any) -> None:
        self._value = value

    @property
    def scalar(self) -> str | None:
        """See `Node.scalar`. Numbers are their shortest text that reads back."""
        match self._value:
            case bool():
                return str(self._value).lower()
            case str():
                return self._value
            case numbers.Integral():
                return str(int(self._value))
            case numbers.Real():
                return repr(float(self._value))
            case os.PathLike():
                return str(os.fspath(self._value))
        return None

    @property
    def items(self) -> list[Node] | None:
        """See `Node.items`."""
        if isinstance(self._value, str | bytes) or not isinstance(self._value, Sequence):
            return None
        return [PlainNode(item) for item in self._value]

    @property
    def pairs(self) -> list[tuple[Node, Node]] | None:
        """See `Node.pairs`."""
        if not isinstance(self._value, Mapping):
            return None
        return [(PlainNode(key), PlainNode(value)) for key, value in self._value.items()]


def read_document(path: Path) -> Node:
    """Read a YAML recipe; raises as `parse`."""
    return YamlNode(parse(path, "recipe"), path)


def parse(path: Path, what: str) -> Any:
    """The nodes of a YAML file that a person wrote. ``what``: what it is, for messages.

    Raises:
        UsageError: it cannot be read, is not YAML (with the line), or has too many values.
    """
    # Keeps yaml out of the start.
    from paramdelta.documents.json import DocumentError
    from paramdelta.documents.yaml import compose_yaml

    text, line = read_text(path, what), None
    try:
        node = compose_yaml(text)
    except DocumentError as error:
        problem, line = str(error.args[0]), error.line
    else:
        if node is not None:
            return node
        raise UsageError(f"the {what} is empty", code="not-yaml", where=place(path))
    raise UsageError(
        f"the {what} cannot be read as YAML",
        code="not-yaml",
        where=place(path) if line is None else f"{place(path)}, line {line}",
        got=shown(problem),
    )


def place(path: Path) -> str:
    """A path as messages name it."""
    return "standard input" if path == STDIN else str(path)


def read_text(path: Path, what: str) -> str:
    """The text of a file that a person wrote. ``what``: what it is, for messages.

    Raises:
        UsageError: it cannot be read, or is larger than `MOST`.
    """
    if path == STDIN:
        return _standard_input(what)
    if path.is_dir():
        raise UsageError(
            f"this is a folder, not a {what}",
            code="unreadable-file",
            where=str(path),
            expected="a YAML file",
            remedy="name models by `post`, `base` and `new_base`",
        )
    try:
        file = File(path)  # refuses a FIFO, which can block, and a device, which can be endless
        try:
            size = file.size()
            if size > MOST:
                raise UsageError(
                    f"too large for a {what}",
                    code="file-too-large",
                    where=str(path),
                    expected=f"a YAML file of at most {show_size(MOST)}",
                    got=show_size(size),
                )
            return file.read(0, size).decode()
        finally:
            file.close()
    except StorageError as error:
        problem = error.got or error.what
    except ValueError as error:
        problem = str(error)
    raise UsageError(
        f"cannot read the {what}",
        code="unreadable-file",
        where=str(path),
        got=problem,
        remedy=None if path.exists() else nearest_path(str(path)),
    )


def _standard_input(what: str) -> str:
    problem = "nothing is connected to it"
    if sys.stdin is not None:
        data = sys.stdin.buffer.read(MOST + 1)
        try:
            if len(data) <= MOST:
                return data.decode()
            problem = f"more than {show_size(MOST)}"
        except ValueError as error:
            problem = str(error)
    raise UsageError(
        f"cannot read the {what}", code="unreadable-file", where="standard input", got=problem
    )
