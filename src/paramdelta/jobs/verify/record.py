"""Records: JSON objects that paramdelta wrote, read as strictly as files from a stranger."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta.errors import CheckpointError
from paramdelta.text import shown

DIGEST, SHA256 = 32, 64  # hexadecimal digits
DEEPEST = 16  # levels of a value that is passed on; a recipe needs seven


@dataclass(frozen=True)
class ListedFile:
    """A file as it was: bytes, and the digest of its content (None: not known)."""

    size: int
    digest: str | None


class Record:
    """A JSON object whose values are checked when they are asked for.

    ``where``: file and place in it, for errors. ``what``: what the file is, for errors.

    Raises, from every method:
        CheckpointError: a value is missing, or is not what it should be.
    """

    def __init__(self, plain: Any, where: str, what: str = "the lock") -> None:
        self.where = where
        self.what = what
        if not isinstance(plain, Mapping):
            raise self.error("", "an object", plain)
        self.plain = plain

    def text(self, key: str) -> str:
        """A text, as a file can hold it."""
        return self._text(key, self.plain.get(key))

    def integer(self, key: str, least: int = 0) -> int:
        """A whole number."""
        value = self.plain.get(key)
        if type(value) is not int or not least <= value < 2**63:
            raise self.error(key, "a whole number", value)
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value: Any = self.plain.get(key)
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not plain or not abs(value) < 1e300:
            raise self.error(key, "a number", value)
        return float(value)

    def hexadecimal(self, key: str, digits: int) -> str:
        """A digest."""
        value = self.plain.get(key)
        if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
            raise self.error(key, f"{digits} hexadecimal digits", value)
        return value

    def name(self, key: str) -> str:
        """The path of a file inside of a folder."""
        return self._name(key, self.plain.get(key))

    def record(self, key: str) -> "Record":
        """Another object."""
        return Record(self.plain.get(key), self._place(key), self.what)

    def records(self, key: str) -> list["Record"]:
        """A list of objects."""
        values = self._list(key)
        return [Record(v, self._place(f"{key}[{n}]"), self.what) for n, v in enumerate(values)]

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        return [self._text(key, value) for value in self._list(key)]

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        values = self._list(key)
        if not all(type(value) is int and 0 <= value < 2**63 for value in values):
            raise self.error(key, "whole numbers", values)
        return tuple(values)

    def items(self) -> Iterator[tuple[str, "Record"]]:
        """Objects by name."""
        for name, value in self.plain.items():
            yield name, Record(value, self._place(shown(name)), self.what)

    def file(self) -> ListedFile:
        """Size and content digest of a file."""
        known = self.plain.get("digest") is not None
        return ListedFile(
            self.integer("size"), self.hexadecimal("digest", DIGEST) if known else None
        )

    def files(self, key: str) -> dict[str, ListedFile]:
        """Files by the paths that they have in their folder; at least one."""
        record = self.record(key)
        found = {self._name(key, name): one.file() for name, one in record.items()}
        if not found:
            raise self.error(key, "files", "none")
        return found

    def value(self, key: str) -> Any:
        """Any value of texts that a file can hold, and of a depth that means something."""
        value = self.plain.get(key)
        self._check(key, value, DEEPEST)
        return value

    def error(self, key: str, expected: str, got: Any) -> CheckpointError:
        """The error for a value that is wrong."""
        plain = got is None or isinstance(got, (str, int, float))
        return CheckpointError(
            f"{self.what} is malformed",
            code="invalid-record",
            where=self._place(key) if key else self.where,
            expected=expected,
            got=shown(str(got)) if plain else f"a value of the type {type(got).__name__}",
        )

    def _place(self, key: str) -> str:
        return f"{self.where}, {key}"

    def _list(self, key: str) -> list[Any]:
        values = self.plain.get(key)
        if not isinstance(values, list):
            raise self.error(key, "a list", values)
        return values

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.error(key, "a text", value)
        try:
            os.fsencode(value)  # paths may hold bytes that are not UTF-8
        except UnicodeEncodeError:  # half of a surrogate pair
            raise self.error(key, "a text", value) from None
        return value

    def _name(self, key: str, value: Any) -> str:
        name = self._text(key, value)
        parts = name.split("/")
        if "\\" in name or ".." in parts or "" in parts or not name.isprintable():
            raise self.error(key, "a path inside of the folder", name)
        return name

    def _check(self, key: str, value: Any, depth: int) -> None:
        if depth == 0:
            raise self.error(key, f"at most {DEEPEST} levels", "more")
        if isinstance(value, str):
            self._text(key, value)
        elif isinstance(value, Mapping):
            for name, inner in value.items():
                self._text(key, name)
                self._check(key, inner, depth - 1)
        elif isinstance(value, list):
            for inner in value:
                self._check(key, inner, depth - 1)
