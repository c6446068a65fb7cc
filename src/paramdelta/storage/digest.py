"""Content digests of files, computed while their bytes pass by, in any order.

A digest is a tree of three levels. A file is cut into blocks of `BLOCK` bytes and each block into
leaves of `LEAF` bytes. A leaf has its XXH3-128; a block has the XXH3-128 of its leaves' digests,
one after the other; the file has the XXH3-128 of its blocks' digests, one after the other, followed
by the file's size as 8 bytes, little-endian. Threads that read different parts of a file can
therefore work on it at once, and an interrupted run can keep what it has.

XXH3 (https://xxhash.com) finds accidental and careless changes at memory speed. It does not protect
against an attacker: nobody should trust a file because of it.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import xxhash

from paramdelta.errors import MisfitError
from paramdelta.storage.blob import Blob

Leaves: TypeAlias = Mapping[str, Mapping[int, str]]
"""Block digests in hexadecimal, by file and number of the block."""

ALGORITHM = "xxh3-128-tree"
BLOCK = 4 << 20  # bytes: what an interrupted run keeps digests of
LEAF = 1 << 16  # bytes: so small that little of a run waits for the run before it, and that
# xxhash does not release the GIL, which would take longer than the hash itself
WAITING = 16 << 20  # bytes of parts that may wait for the parts before them, in all files


@dataclass
class _Partial:
    """A leaf of which only some parts have come: the state, how far it is, what waits."""

    state: Any = field(default_factory=xxhash.xxh3_128)
    done: int = 0
    waiting: dict[int, bytes] = field(default_factory=dict)


class _Allowance:
    """Bytes that may wait, for all files together."""

    def __init__(self, size: int) -> None:
        self.left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Whether this many more bytes may wait."""
        with self._lock:
            enough = size <= self.left
            self.left -= size if enough else 0
            return enough

    def give(self, size: int) -> None:
        """Return bytes that no longer wait."""
        with self._lock:
            self.left += size


class TreeDigest:
    """The digest of one file of ``size`` bytes. ``blocks``: digests of whole blocks, by number."""

    def __init__(self, size: int, allowance: _Allowance | None = None) -> None:
        self.size = size
        self.blocks: dict[int, bytes] = {}
        self._leaves: dict[int, dict[int, bytes]] = {}  # of blocks that are not whole
        self._fresh: list[int] = []  # numbers of blocks
        self._partial: dict[int, _Partial] = {}
        self._allowance = allowance or _Allowance(WAITING)
        self._lock = threading.Lock()

    def update(self, offset: int, data: memoryview) -> None:
        """Take some bytes of the file. Parts may come in any order and more than once."""
        stop = offset + len(data)
        first = -(-offset // LEAF)
        last = -(-stop // LEAF) if stop == self.size else stop // LEAF
        begin, end = first * LEAF - offset, last * LEAF - offset
        found = [xxhash.xxh3_128_digest(data[at : at + LEAF]) for at in range(begin, end, LEAF)]
        if begin > 0:
            leaf = self._add(first - 1, LEAF - begin, data[:begin])
            if leaf is not None:
                first, found = first - 1, [leaf, *found]
        if found:
            self._complete(first, found)
        if 0 <= end < len(data):
            leaf = self._add(last, 0, data[end:])
            if leaf is not None:
                self._complete(last, [leaf])

    def fresh(self) -> dict[int, bytes]:
        """Digests of the blocks that `update` completed since the last call."""
        with self._lock:
            numbers, self._fresh = self._fresh, []
        return {number: self.blocks[number] for number in numbers}

    @property
    def unread(self) -> int:
        """Bytes that are missing."""
        return sum(length for _, length in self.missing)

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Offset and length of what has to be read for the blocks that have no digest yet."""
        found = []
        for block in range(-(-self.size // BLOCK)):
            if block in self.blocks:
                continue
            leaves, start = self._leaves.get(block, {}), block * BLOCK
            for number in range(start // LEAF, -(-min(start + BLOCK, self.size) // LEAF)):
                if number in leaves:
                    continue
                partial = self._partial.get(number, _Partial())
                at = partial.done
                for begin, part in sorted(partial.waiting.items()):
                    if begin > at:
                        found.append((number * LEAF + at, begin - at))
                    at = max(at, begin + len(part))
                if at < self._length(number):
                    found.append((number * LEAF + at, self._length(number) - at))
        return found

    def hexdigest(self) -> str:
        """The digest of the file, if nothing is `missing`."""
        state = xxhash.xxh3_128()
        for number in range(-(-self.size // BLOCK)):
            state.update(self.blocks[number])
        state.update(self.size.to_bytes(8, "little"))
        return str(state.hexdigest())

    def _length(self, number: int) -> int:
        return min(LEAF, self.size - number * LEAF)

    def _complete(self, first: int, digests: Sequence[bytes]) -> None:
        """Take the digests of leaves from number ``first``; a block that has all gets a digest."""
        each, last = BLOCK // LEAF, first + len(digests)
        with self._lock:
            for block in range(first // each, -(-last // each)):
                if block in self.blocks:
                    continue
                begin, end = max(first, block * each), min(last, (block + 1) * each)
                leaves = self._leaves.setdefault(block, {})
                leaves.update(
                    zip(range(begin, end), digests[begin - first : end - first], strict=True)
                )
                if len(leaves) * LEAF >= min(BLOCK, self.size - block * BLOCK):
                    joined = b"".join(leaves[number] for number in sorted(leaves))
                    self.blocks[block] = xxhash.xxh3_128_digest(joined)
                    self._fresh.append(block)
                    del self._leaves[block]

    def _add(self, number: int, at: int, part: memoryview) -> bytes | None:
        """Take a part of a leaf; the leaf's digest if that made it whole."""
        block = number * LEAF // BLOCK
        with self._lock:
            if block in self.blocks or number in self._leaves.get(block, ()):
                return None
            partial = self._partial.get(number)
            if partial is None:
                partial = self._partial[number] = _Partial()
            if at > partial.done:
                known = len(partial.waiting.get(at, b""))
                if known < len(part) and self._allowance.take(len(part) - known):
                    partial.waiting[at] = bytes(part)  # else it is read again at the end
                return None
            self._append(partial, at, part)
            for begin in sorted(partial.waiting):
                if begin > partial.done:
                    break
                waited = partial.waiting.pop(begin)
                self._allowance.give(len(waited))
                self._append(partial, begin, memoryview(waited))
            if partial.done < self._length(number):
                return None
            self._allowance.give(sum(map(len, partial.waiting.values())))
            del self._partial[number]
            return bytes(partial.state.digest())

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
            known = self.known.get(url, {})
            for number, leaf in file.fresh().items():
                if known.get(number, leaf) != leaf:
                    raise MisfitError(
                        "the content of a file changed since the unfinished run",
                        code="source-changed",
                        where=f"{url}, from byte {number * BLOCK}",
                        remedy="put the file back, or start again from nothing",
                    )
                if number not in known:
                    result.setdefault(url, {})[number] = leaf.hex()
        return result

    def drop(self, url: str) -> None:
        """Forget a file."""
        with self._lock:
            self._files.pop(url, None)

    def adopt(self, url: str, size: int) -> TreeDigest:
        """A file's digest with the blocks that an earlier run knew and this one did not meet."""
        file = self.of(url, size)
        for number, leaf in self.known.get(url, {}).items():
            file.blocks.setdefault(number, leaf)
        return file
