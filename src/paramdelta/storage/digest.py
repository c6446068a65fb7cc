"""Content digests of files, computed while their bytes pass by, in any order.

A digest is a tree of two levels: the file is cut into blocks of `BLOCK` bytes, each block has its
XXH3-128, and the digest of the file is the XXH3-128 of all block digests, one after the other,
followed by the file's size as 8 bytes, little-endian. Threads that read different parts of a file
can therefore work on it at once, and an interrupted run can keep what it has.

XXH3 (https://xxhash.com) finds accidental and careless changes at memory speed. It does not protect
against an attacker: nobody should trust a file because of it.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import xxhash

from paramdelta.errors import MisfitError
from paramdelta.storage.blob import Blob

Leaves: TypeAlias = Mapping[str, Mapping[int, str]]
"""Block digests in hexadecimal, by file and number of the block."""

ALGORITHM = "xxh3-128-tree"
BLOCK = 1 << 20  # bytes
WAITING = 16 << 20  # bytes of parts that may wait for the parts before them, in all files


@dataclass
class _Partial:
    """A block of which only some parts have come: the state, how far it is, what waits."""

    state: Any = field(default_factory=xxhash.xxh3_128)
    done: int = 0
    waiting: dict[int, bytes] = field(default_factory=dict)


class _Allowance:
    """Bytes that may wait, for all files together."""

    def __init__(self, size: int) -> None:
        self.left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Whether so many bytes may wait as well."""
        with self._lock:
            enough = size <= self.left
            self.left -= size if enough else 0
            return enough

    def give(self, size: int) -> None:
        """Return bytes that no longer wait."""
        with self._lock:
            self.left += size


class TreeDigest:
    """The digest of one file of ``size`` bytes. ``leaves``: digests of whole blocks, by number."""

    def __init__(self, size: int, allowance: _Allowance | None = None) -> None:
        self.size = size
        self.leaves: dict[int, bytes] = {}
        self._partial: dict[int, _Partial] = {}
        self._allowance = allowance or _Allowance(WAITING)
        self._lock = threading.Lock()

    def update(self, offset: int, data: memoryview) -> None:
        """Take some bytes of the file. Parts may come in any order and more than once."""
        stop = offset + len(data)
        for number in range(offset // BLOCK, -(-stop // BLOCK)):
            if number in self.leaves:
                continue
            first = number * BLOCK
            begin, end = max(offset, first), min(stop, first + BLOCK)
            part = data[begin - offset : end - offset]
            if len(part) == self._length(number):
                self.leaves[number] = xxhash.xxh3_128_digest(part)
            else:
                self._add(number, begin - first, part)

    @property
    def unread(self) -> int:
        """Bytes that are missing."""
        return sum(length for _, length in self.missing)

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Offset and length of what has to be read for the blocks that have no digest yet."""
        found = []
        for number in range(-(-self.size // BLOCK)):
            if number in self.leaves:
                continue
            partial = self._partial.get(number, _Partial())
            at = partial.done
            for begin, part in sorted(partial.waiting.items()):
                if begin > at:
                    found.append((number * BLOCK + at, begin - at))
                at = max(at, begin + len(part))
            if at < self._length(number):
                found.append((number * BLOCK + at, self._length(number) - at))
        return found

    def hexdigest(self) -> str:
        """The digest of the file, if no block is `missing`."""
        state = xxhash.xxh3_128()
        for number in range(-(-self.size // BLOCK)):
            state.update(self.leaves[number])
        state.update(self.size.to_bytes(8, "little"))
        return str(state.hexdigest())

    def _length(self, number: int) -> int:
        return min(BLOCK, self.size - number * BLOCK)

    def _add(self, number: int, at: int, part: memoryview) -> None:
        with self._lock:
            partial = self._partial.setdefault(number, _Partial())
            if at > partial.done:
                known = len(partial.waiting.get(at, b""))
                if known < len(part) and self._allowance.take(len(part) - known):
                    partial.waiting[at] = bytes(part)  # else it is read again at the end
                return
            self._append(partial, at, part)
            for begin in sorted(partial.waiting):
                if begin > partial.done:
                    break
                waited = partial.waiting.pop(begin)
                self._allowance.give(len(waited))
                self._append(partial, begin, memoryview(waited))
            if partial.done == self._length(number):
                self.leaves[number] = partial.state.digest()
                self._allowance.give(sum(map(len, partial.waiting.values())))
                del self._partial[number]

    @staticmethod
    def _append(partial: _Partial, at: int, part: memoryview) -> None:
        fresh = part[partial.done - at :]
        partial.state.update(fresh)
        partial.done += len(fresh)


class Digests:
    """The digests of many files.

    ``known``: block digests of an earlier run, by URL and number. A block that has another digest
    now belongs to a file that was changed.
    """

    def __init__(self, known: Mapping[str, Mapping[int, bytes]] | None = None) -> None:
        self.known: Mapping[str, Mapping[int, bytes]] = known or {}
        self._files: dict[str, TreeDigest] = {}
        self._told: dict[str, set[int]] = {}
        self._allowance = _Allowance(WAITING)
        self._lock = threading.Lock()

    def update(self, blob: Blob, offset: int, data: memoryview) -> None:
        """Take some bytes of a blob."""
        self.of(blob.url, blob.size).update(offset, data)

    def of(self, url: str, size: int) -> TreeDigest:
        """The digest of one file in the making."""
        found = self._files.get(url)
        if found is None:
            with self._lock:
                found = self._files.setdefault(url, TreeDigest(size, self._allowance))
        return found

    def news(self) -> dict[str, dict[int, str]]:
        """Block digests that were not returned before, in hexadecimal.

        Raises:
            MisfitError: a block differs from the one that an earlier run read.
        """
        result: dict[str, dict[int, str]] = {}
        for url, file in list(self._files.items()):
            told, known = self._told.setdefault(url, set()), self.known.get(url, {})
            for number, leaf in list(file.leaves.items()):
                if number in told:
                    continue
                told.add(number)
                if known.get(number, leaf) != leaf:
                    raise MisfitError(
                        "the content of a file changed since the unfinished run",
                        where=f"{url}, from byte {number * BLOCK}",
                        remedy="put the file back, or start again from nothing",
                    )
                if number not in known:
                    result.setdefault(url, {})[number] = leaf.hex()
        return result

    def adopt(self, url: str, size: int) -> TreeDigest:
        """A file's digest with the blocks that an earlier run knew and this one did not meet."""
        file = self.of(url, size)
        for number, leaf in self.known.get(url, {}).items():
            file.leaves.setdefault(number, leaf)
        return file
