"""A zip archive's directory: where the bytes of each entry are. Nothing is decompressed.

Only what `torch.save` writes is believed: one part, no comment, and entries that do not overlap,
whose own headers agree with the directory. Two readers must not see two archives.

Source: the zip file format specification of PKWARE (APPNOTE.TXT 6.3.10), sections 4.3 and 4.5.3.
"""

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from paramdelta.errors import CheckpointError
from paramdelta.text import shown

MAX_DIRECTORY = 16_000_000  # bytes; 80 a tensor are usual
_BLOCK = 4096  # bytes that are read to have a local header, and with luck those that follow
_WIDE = 0xFFFFFFFF  # stands for a number that is in the zip64 field

Read: TypeAlias = Callable[[int, int], bytes]
"""``read(offset, length)`` gives just these bytes of the file."""


class Listed(NamedTuple):
    """An entry as the directory lists it. ``begin``: of its own header. ``packed``, ``size``: bytes
    before and after decompression. ``method``: 0 if stored as it is.
    """

    name: bytes
    begin: int
    packed: int
    size: int
    flags: int
    method: int


class Entry(NamedTuple):
    """The bytes of a stored entry: ``size`` bytes from ``begin`` on."""

    begin: int
    size: int


def find_directory(read: Read, size: int, where: str) -> tuple[int, int]:
    """Where the directory of an archive of ``size`` bytes begins and ends; entries lie before it.

    Raises:
        CheckpointError: no directory at the end of the file, or one that is too large.
    """
    end = size - 22
    tail = read(max(0, end - 76), size - max(0, end - 76))
    if end < 0 or tail[-22:-18] != b"PK\5\6":
        raise _error("the archive has no end", where, "its directory at the end of the file", "")
    disks, _, _, length, start, comment = struct.unpack("<L2H2LH", tail[-18:])
    if tail[-42:-38] == b"PK\6\7" and len(tail) == 98:  # zip64: 56 bytes, and 20 that point there
        end, narrow = end - 76, (length, start)
        (pointed,) = struct.unpack("<Q", tail[-34:-26])
        length, start = struct.unpack("<2Q", tail[40:56])
        agree = all(n in (_WIDE, w) for n, w in zip(narrow, (length, start), strict=True))
        if tail[:4] != b"PK\6\6" or pointed != end or not agree:
            raise _error("the archive's end is damaged", where, "a zip64 record", "")
    if start + length != end or disks or comment:
        raise _error(
            "the archive's directory is not where it should be",
            where,
            f"its end at byte {end}",
            f"{length} bytes from byte {start} on",
        )
    if length > MAX_DIRECTORY:
        raise _error("too many entries", where, f"{MAX_DIRECTORY} bytes of them", f"{length} bytes")
    return start, end


def listed(directory: bytes, where: str) -> Iterator[Listed]:
    """The entries that a directory lists; raises CheckpointError where it is malformed."""
    position, unpack = 0, struct.Struct("<4s4x2H8x2L3H8xL").unpack_from
    while position < len(directory):
        if position + 46 > len(directory):
            raise _error("the archive's directory is damaged", where, "an entry", "its end")
        fields = unpack(directory, position)
        signature, flags, method, packed, size, name_length, extra_length, comment, begin = fields
        if signature != b"PK\1\2":
            raise _error("the archive's directory is damaged", where, "an entry", "")
        position += 46
        if position + name_length + extra_length + comment > len(directory):
            raise _error("the archive's directory is damaged", where, "a whole entry", "its end")
        name = directory[position : position + name_length]
        position += name_length
        if _WIDE in (size, packed, begin):
            wide = _zip64(directory, position, position + extra_length)
            if len(wide) < (size, packed, begin).count(_WIDE):
                raise _error("a zip64 entry has no sizes", where, "sizes", _name(name))
            numbers = iter(wide)
            size, packed, begin = (
                next(numbers) if value == _WIDE else value for value in (size, packed, begin)
            )
        position += extra_length + comment
        yield Listed(name, begin, packed, size, flags, method)


def locate(read: Read, entries: list[Listed], stop: int, where: str) -> dict[str, Entry]:
    """Entries by name, with the places of their bytes by their own headers; no overlaps.

    Raises:
        CheckpointError: an entry is compressed, encrypted or damaged, or has an invalid name.
    """
    found: dict[str, Entry] = {}
    position, block, start = 0, b"", 0
    unpack = struct.Struct("<4s2x2H16x2H").unpack_from
    for entry in sorted(entries, key=lambda entry: entry.begin):
        header = 30 + len(entry.name)
        if entry.begin < position or entry.begin + header > stop:
            raise _error(
                "an entry overlaps another or the directory",
                where,
                f"begin at {position} or later",
                f"{entry.begin}, {_name(entry.name)}",
            )
        at = entry.begin - start
        if at < 0 or at + header > len(block):
            block = read(entry.begin, min(max(header, _BLOCK), stop - entry.begin))
            start, at = entry.begin, 0
        signature, flags, method, length, extra = unpack(block, at)
        own = block[at + 30 : at + header]
        if signature != b"PK\3\4" or length != len(entry.name) or own != entry.name:
            raise _error("an entry's header is another's", where, _name(entry.name), "")
        _check_plain(entry, entry.flags | flags, entry.method or method, where)
        begin = entry.begin + header + extra
        position = begin + entry.size
        if position > stop:
            raise _error(
                "an entry reaches into the directory",
                where,
                f"{stop - begin} bytes at the most",
                f"{entry.size}, {_name(entry.name)}",
            )
        try:
            name = entry.name.decode()
        except UnicodeDecodeError:
            name = ""
        if not name or name in found or "\\" in name or "\0" in name or _leaves(name):
            raise _error("invalid entry name", where, "a path, each once", _name(entry.name))
        found[name] = Entry(begin, entry.size)
    return found


def _zip64(directory: bytes, position: int, stop: int) -> list[int]:
    """The numbers of a zip64 extra field (APPNOTE 4.5.3), none where there is no such field."""
    while position + 4 <= stop:
        tag, length = struct.unpack_from("<2H", directory, position)
        position += 4
        if tag == 1 and position + length <= stop:
            return list(struct.unpack_from(f"<{min(length // 8, 3)}Q", directory, position))
        position += length
    return []


def _check_plain(entry: Listed, flags: int, method: int, where: str) -> None:
    if flags & 0x2041:  # encrypted; strongly; its header as well
        raise _error("an entry is encrypted", where, "a plain archive", _name(entry.name))
    if method:
        raise _error(
            "an entry is compressed",
            where,
            "stored entries, as torch.save writes them",
            f"method {method} for {_name(entry.name)}",
            "load the file with torch and save it again",
        )
    if entry.packed != entry.size:
        got = f"{entry.packed}, {_name(entry.name)}"
        raise _error("an entry has two sizes", where, str(entry.size), got)


def _leaves(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


def _name(name: bytes) -> str:
    return f"'{shown(name[:200].decode('utf-8', 'backslashreplace'))}'"


def _error(
    what: str,
    where: str,
    expected: str,
    got: str,
    remedy: str = "the file is damaged or not what torch.save writes: get it again",
) -> CheckpointError:
    return CheckpointError(
        what,
        code="invalid-torch-file",
        where=where,
        expected=expected,
        got=got or None,
        remedy=remedy,
    )
