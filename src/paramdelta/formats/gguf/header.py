"""The header of a GGUF file: metadata, and where every tensor is. Nothing in it is believed.

The layout, little-endian: the magic, a version, two counts; then the metadata as key, type, value;
then the tensors as name, shape (fastest axis first), type, offset; then the data, aligned. Tensors
follow each other without gaps but for alignment, as llama.cpp demands. Source: ggml's docs/gguf.md,
and gguf_init_from_file of gguf.cpp.
"""

import hashlib
import math
import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from paramdelta.errors import CheckpointError
from paramdelta.formats.gguf.types import READABLE, TYPES, UNREADABLE, Type
from paramdelta.storage.blob import Blob
from paramdelta.storage.reader import Reader

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST = 64 << 20  # bytes of a header; the largest known vocabularies need 20 MB
MOST_ITEMS = 4_000_000  # of an array; the largest known one has 600,000
MOST_KEYS = 65_536
MOST_TENSORS = 65_536
LONGEST_NAME = 64  # bytes: GGML_MAX_NAME
LONGEST_KEY = 65_535
AXES = 4
FIRST = 1 << 18  # bytes read at first

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
# How text is cut into tokens: large, and needed only to run a tokenizer.
_PASSED_OVER = frozenset({"tokenizer.ggml.merges", "tokenizer.ggml.scores"})


@dataclass(frozen=True)
class Entry:
    """A tensor: ``size`` bytes from ``offset`` of the file. ``shape``: slowest axis first."""

    name: str
    type: Type
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """``metadata``: by key; arrays as list or array, None for those that only run a tokenizer.
    ``sha256``: of all bytes before the data.
    """

    metadata: Mapping[str, Any]
    entries: tuple[Entry, ...]
    sha256: str


def read_header(reader: Reader, blob: Blob) -> Header:
    """The header of a GGUF file; reads little more than the header.

    Raises:
        CheckpointError: it is damaged or hostile, or a tensor has a type that cannot be read.
        StorageError: the file cannot be read.
    """
    cursor = _Cursor(reader, blob)
    if cursor.take(4) != MAGIC:
        cursor.fail("this is not a GGUF file", "the bytes GGUF at its start")
    version = cursor.scalar("I")
    if version in (number << 24 for number in VERSIONS):
        cursor.fail(
            "a GGUF file of the other byte order", remedy="take the usual, little-endian file"
        )
    if version not in VERSIONS:
        cursor.fail(
            "GGUF of a version that cannot be read",
            "version 2 or 3",
            f"version {version}",
            remedy="convert the model again with a current llama.cpp",
        )
    tensors = cursor.count("tensors", MOST_TENSORS, least=24)
    keys = cursor.count("keys of metadata", MOST_KEYS, least=13)
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text("a key of the metadata", LONGEST_KEY)
        if key in metadata:
            cursor.fail("the metadata has a key twice", got=repr(key))
        metadata[key] = cursor.value(cursor.scalar("I"), key)
    found = [cursor.entry() for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        cursor.fail("the alignment is not valid", "a power of two", repr(alignment)[:40])
    entries = tuple(_placed(found, cursor, alignment))
    with memoryview(cursor.data) as data:
        return Header(metadata, entries, hashlib.sha256(data[: cursor.place]).hexdigest())


def _placed(
    found: list[tuple[str, Type, tuple[int, ...], int]], cursor: "_Cursor", alignment: int
) -> Iterator[Entry]:
    """The tensors with their places in the file, each of which begins where the last one ends."""
    start = _aligned(cursor.place, alignment) if found else 0
    names: set[str] = set()
    expected = 0
    for name, kind, shape, offset in found:
        if name in names:
            cursor.fail("two tensors have one name", got=repr(name))
        names.add(name)
        size = math.prod(shape) // kind.elements * kind.size
        if offset != expected:
            cursor.fail(
                f"tensor {name!r} is not where the last one ends",
                f"offset {expected}",
                f"offset {offset}",
            )
        if start + offset + size > cursor.size:
            cursor.fail(
                "the file is cut short",
                f"{start + offset + size} bytes at least, for tensor {name!r}",
                f"{cursor.size} bytes",
                remedy="download the file again",
            )
        yield Entry(name, kind, shape, start + offset, size)
        expected = _aligned(offset + size, alignment)


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment


class _Cursor:
    """Reads values in order, and more of the file as they need it, never past its end."""

    def __init__(self, reader: Reader, blob: Blob) -> None:
        self.reader = reader
        self.blob = blob
        self.size = blob.size
        self.data = bytearray()
        self.place = 0

    def fail(self, what: str, expected: str = "", got: str = "", remedy: str = "") -> NoReturn:
        """Raise CheckpointError with the place."""
        raise CheckpointError(
            what,
            code="invalid-gguf",
            where=f"{self.blob}, header at byte {self.place}",
            expected=expected or None,
            got=got or None,
            remedy=remedy or "get the file again, or convert the model again",
        )

    def _need(self, count: int) -> None:
        """Have the next bytes in memory."""
        end = self.place + count
        if end <= len(self.data):
            return
        if end > min(self.size, MOST):
            short = end > self.size
            self.fail(
                "the file ends within its header" if short else "the header is too large",
                f"{count} bytes more" if short else f"at most {MOST} bytes",
                f"{self.size - self.place} bytes" if short else "",
            )
        more = max(end, 2 * len(self.data), FIRST) - len(self.data)
        more = min(more, min(self.size, MOST) - len(self.data))
        self.data += self.reader.get(self.blob, len(self.data), more)

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self._need(count)
        self.place += count
        return bytes(self.data[self.place - count : self.place])

    def scalar(self, code: str) -> Any:
        """The next number, of a type of the struct module."""
        size = struct.calcsize(code)
        self._need(size)
        (value,) = struct.unpack_from("<" + code, self.data, self.place)
        self.place += size
        return value

    def count(self, what: str, most: int, least: int) -> int:
        """How many things follow, each of at least so many bytes."""
        count = int(self.scalar("Q"))
        room = (self.size - self.place) // least
        if count > room:
            self.fail(f"more {what} than the file has room for", f"at most {room}", str(count))
        if count > most:
            self.fail(f"too many {what}", f"at most {most}", str(count))
        return count

    def text(self, what: str, most: int) -> str:
        """A name: UTF-8, not empty."""
        length = int(self.scalar("Q"))
        if not 0 < length <= most:
            self.fail(f"{what} has an invalid length", f"1 to {most} bytes", str(length))
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def value(self, kind: int, key: str) -> Any:
        """A value of the metadata; None for one that is passed over."""
        if kind == _ARRAY:
            return self._array(key)
        return self._single(kind, key)

    def _single(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._strings(1)[0]
        if kind not in _SCALARS:
            self.fail(f"the metadata has a value of an unknown type: {key!r}", got=f"type {kind}")
        return self.scalar(_SCALARS[kind])

    def _strings(self, count: int, keep: bool = True) -> list[str]:
        """The next strings; none of them unless they are to be kept."""
        found: list[str] = []
        data = self.data
        for _ in range(count):
            if self.place + 8 > len(data):
                self._need(8)
            start = self.place + 8
            end = start + _LENGTH.unpack_from(data, self.place)[0]
            if end > len(data):
                self._need(end - self.place)
            if keep:
                # Bytes that are not UTF-8 stay distinct: two tokens must not become one.
                found.append(data[start:end].decode(errors="backslashreplace"))
            self.place = end
        return found

    def _array(self, key: str) -> "list[str] | array[Any] | None":
        """An array; None for one that is passed over."""
        kind = self.scalar("I")
        if kind == _STRING:
            count = self.count(f"strings in {key!r}", MOST_ITEMS, least=8)
            found = self._strings(count, keep=key not in _PASSED_OVER)
            return found if key not in _PASSED_OVER else None
        if kind not in _SCALARS:
            self.fail(f"the metadata has an array of an unknown type: {key!r}", got=f"type {kind}")
        code = _SCALARS[kind]
        size = struct.calcsize(code)
        count = self.count(f"numbers in {key!r}", MOST_ITEMS, least=size)
        data = self.take(count * size)
        return None if key in _PASSED_OVER else array(code.replace("?", "B"), data)

    def entry(self) -> tuple[str, Type, tuple[int, ...], int]:
        """A tensor: name, type, shape, offset in the data."""
        name = self.text("the name of a tensor", LONGEST_NAME)
        axes = self.scalar("I")
        if not 1 <= axes <= AXES:
            self.fail(f"tensor {name!r} has {axes} axes", f"1 to {AXES}")
        shape = tuple(self.scalar("Q") for _ in range(axes))[::-1]
        number, offset = self.scalar("I"), self.scalar("Q")
        kind = TYPES.get(number)
        if kind is None:
            raise CheckpointError(
                f"tensor {name!r} has a type whose numbers cannot be read",
                code="gguf-type",
                where=str(self.blob),
                expected=READABLE,
                got=UNREADABLE.get(number, f"type {number}"),
                remedy="take a file of another quantization, or turn this one into F16 with "
                "llama.cpp's llama-quantize",
            )
        if min(shape) < 1 or max(shape) > self.size * 8:
            self.fail(f"tensor {name!r} has an impossible shape", got=str(list(shape)))
        if shape[-1] % kind.elements:
            self.fail(
                f"the rows of tensor {name!r} are not whole blocks of {kind.name}",
                f"a multiple of {kind.elements} numbers",
                str(shape[-1]),
            )
        return name, kind, shape, offset
